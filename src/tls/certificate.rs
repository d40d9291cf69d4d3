//! What the gateway reads in a certificate: its names, when it is valid, and who its owner is.

use crate::request::ClientCertificate;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

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
    let time = |stamp: i64| match u64::try_from(stamp) {
        Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => Some(SystemTime::UNIX_EPOCH),
    };
    let (Some(not_before), Some(not_after)) =
        (time(parsed.validity.not_before.timestamp()), time(parsed.validity.not_after.timestamp()))
    else {
        return Err("its validity cannot be read".to_owned());
    };
    let names = general_names(&parsed).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok(Leaf { names: names.collect(), not_before, not_after })
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
    Some(ClientCertificate {
        subject: parsed.subject().to_string().into(),
        names: names.map(Into::into).take(CLIENT_NAMES_MAX).collect(),
        sha256: fingerprint(der).into(),
    })
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

    #[test]
    fn a_fingerprint_is_sha256_in_lower_case() {
        assert_eq!(fingerprint(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
