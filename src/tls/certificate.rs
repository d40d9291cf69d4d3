//! What the gateway reads in a certificate: its names, when it is valid, and who its owner is.

use crate::request::ClientCertificate;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};
use x509_parser::der_parser::asn1_rs::{Any, BmpString, Tag, ToDer};
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

/// The most names of a client certificate that are kept. They go into memory for as long as the connection lives.
const CLIENT_NAMES_MAX: usize = 64;

/// What decides about a server certificate.
#[derive(Debug)]
pub struct Leaf {
    /// DNS names, lower case; IP addresses are not asked for by SNI (RFC 6066 §3).
    pub names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Reads the certificate of a server. The error is a sentence.
pub fn leaf(der: &[u8]) -> Result<Leaf, String> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|_| "it is not a valid X.509 certificate".to_owned())?;
    let (not_before, not_after) = validity(&parsed).ok_or("its validity cannot be read")?;
    let names = general_names(&parsed).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok(Leaf { names: names.collect(), not_before, not_after })
}

fn validity(certificate: &X509Certificate<'_>) -> Option<(SystemTime, SystemTime)> {
    let time = |stamp: i64| match u64::try_from(stamp) {
        Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => Some(SystemTime::UNIX_EPOCH),
    };
    let validity = &certificate.validity;
    Some((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// Reads the certificate of a client, which has been verified. `None` if it cannot be read all the same.
pub fn client(der: &[u8]) -> Option<ClientCertificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let names = general_names(&parsed).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
        GeneralName::URI(uri) => Some(format!("URI:{uri}")),
        GeneralName::RFC822Name(mail) => Some(format!("email:{mail}")),
        GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| format!("IP:{ip}")),
        _ => None,
    });
    let (not_before, not_after) = validity(&parsed)?;
    Some(ClientCertificate {
        subject: subject(parsed.subject()).unwrap_or_default().into(),
        not_before,
        not_after,
        names: names.map(Into::into).take(CLIENT_NAMES_MAX).collect(),
        sha256: fingerprint(der).into(),
    })
}

/// The name in the order of the certificate, with `, ` between its parts and ` + ` within one of several attributes, as in `C=DE,
/// O=Example, CN=orders`. Values are escaped as RFC 4514 section 2.4 says, so that no value reads as further attributes. What is no
/// text stands there as its DER (`#` and hexadecimal digits). `None` if some part cannot be written.
fn subject(name: &X509Name<'_>) -> Option<String> {
    let mut text = String::new();
    for rdn in name.iter_rdn() {
        let mut between = if text.is_empty() { "" } else { ", " };
        for attribute in rdn.iter() {
            text.push_str(std::mem::replace(&mut between, " + "));
            match oid2abbrev(attribute.attr_type(), oid_registry()) {
                Ok(known) => text.push_str(known),
                Err(_) => text.push_str(&attribute.attr_type().to_id_string()),
            }
            text.push('=');
            match value(attribute.attr_value())? {
                Value::Text(value) => escape(&value, &mut text),
                Value::Other(der) => {
                    text.push('#');
                    for byte in der {
                        // Writing to a String cannot fail.
                        let _ = write!(text, "{byte:02X}");
                    }
                }
            }
        }
    }
    Some(text)
}

enum Value<'a> {
    Text(Cow<'a, str>),
    Other(Vec<u8>),
}

fn value<'a>(value: &'a Any<'_>) -> Option<Value<'a>> {
    match value.tag() {
        Tag::NumericString
        | Tag::VisibleString
        | Tag::PrintableString
        | Tag::GeneralString
        | Tag::ObjectDescriptor
        | Tag::GraphicString
        | Tag::T61String
        | Tag::VideotexString
        | Tag::Utf8String
        | Tag::Ia5String => std::str::from_utf8(value.data).ok().map(|text| Value::Text(text.into())),
        Tag::BmpString => BmpString::try_from(value.clone()).ok().map(|text| Value::Text(text.string().into())),
        _ => value.to_der_vec().ok().map(Value::Other),
    }
}

fn escape(value: &str, out: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            '#' if at == 0 => out.push_str("\\#"),
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            control if control.is_control() => {
                let mut bytes = [0; 4];
                for byte in control.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(out, "\\{byte:02X}");
                }
            }
            plain => out.push(plain),
        }
    }
}

/// SHA-256 of the certificate in DER, 64 lower-case hexadecimal digits: what `openssl x509 -fingerprint -sha256` shows,
/// without its colons.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn general_names<'a>(certificate: &'a X509Certificate<'a>) -> impl Iterator<Item = &'a GeneralName<'a>> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    extension.into_iter().flat_map(|extension| extension.value.general_names.iter())
}

fn ip(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_owner_are_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["API.example.com".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "acme");
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let read = leaf(&der).unwrap();
        assert_eq!(read.names, ["api.example.com"]);
        assert!(read.not_before < SystemTime::now() && read.not_after > SystemTime::now());
        let owner = client(&der).unwrap();
        assert!(owner.subject.contains("CN=acme"), "{}", owner.subject);
        assert_eq!(owner.names.iter().map(|name| &**name).collect::<Vec<_>>(), ["DNS:API.example.com", "IP:192.0.2.1"]);
        assert_eq!(owner.sha256.len(), 64);
        assert!(leaf(b"no").is_err() && client(b"no").is_none());
    }

    /// The subject of a certificate whose name has these attributes, each a part of its own.
    fn subject_of(attributes: &[(rcgen::DnType, rcgen::DnValue)]) -> Box<str> {
        let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        attributes.iter().for_each(|(kind, value)| params.distinguished_name.push(kind.clone(), value.clone()));
        client(params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der()).unwrap().subject
    }

    #[test]
    fn no_value_of_a_subject_reads_as_further_attributes() {
        use rcgen::DnType::{CommonName, CountryName, OrganizationName, OrganizationalUnitName};
        use rcgen::DnValue;
        let text = |text: &str| DnValue::Utf8String(text.to_owned());
        let honest = [(OrganizationName, text("Example")), (CommonName, text("svc")), (OrganizationalUnitName, text("admin"))];
        let forged = [(OrganizationName, text("Example")), (CommonName, text("svc, OU=admin"))];
        assert_eq!(&*subject_of(&honest), "O=Example, CN=svc, OU=admin");
        assert_eq!(&*subject_of(&forged), "O=Example, CN=svc\\, OU=admin");
        let bmp = DnValue::BmpString(rcgen::string::BmpString::try_from("Zoë, CN=a").unwrap());
        assert_eq!(&*subject_of(&[(CountryName, text("DE")), (CommonName, bmp)]), "C=DE, CN=Zoë\\, CN=a");
        for (value, written) in [
            ("a=b", "CN=a=b"),
            ("a + OU=b", "CN=a \\+ OU=b"),
            ("a\\, b", "CN=a\\\\\\, b"),
            (" a ", "CN=\\ a\\ "),
            (" ", "CN=\\ "),
            ("#a#", "CN=\\#a#"),
            ("a\n\0\u{85}", "CN=a\\0A\\00\\C2\\85"),
            ("\"<;>\"", "CN=\\\"\\<\\;\\>\\\""),
        ] {
            assert_eq!(&*subject_of(&[(CommonName, text(value))]), written);
        }
        // An unknown attribute is called by its number.
        let other = rcgen::DnType::CustomDnType(vec![1, 2, 3, 4]);
        assert_eq!(&*subject_of(&[(other, text("a"))]), "1.2.3.4=a");
    }

    /// Otherwise all certificates of this kind would be called the same.
    #[test]
    fn a_subject_that_cannot_be_written_is_empty() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "canary");
        let mut der = params.self_signed(&key).unwrap().der().to_vec();
        let good = client(&der).unwrap();
        assert_eq!(&*good.subject, "CN=canary");
        // No text in UTF-8. Who signed it is not looked at here.
        let places: Vec<usize> = (0..der.len() - 6).filter(|at| der[*at..].starts_with(b"canary")).collect();
        places.iter().for_each(|at| der[*at] = 0xff);
        assert_eq!(&*client(&der).unwrap().subject, "");
    }

    #[test]
    fn a_fingerprint_is_sha256_in_lower_case() {
        assert_eq!(fingerprint(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
