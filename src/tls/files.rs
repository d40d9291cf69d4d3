//! Certificates, keys and OCSP responses as files: bounded, and everything wrong with them told at the place that names
//! them.

use crate::diagnostic::{Diagnostics, Span};
use crate::value::{Located, read_file};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};

/// The largest certificate file, in bytes. A file of a thousand authorities has about as many.
const PEM_MAX: u64 = 1 << 20;
/// The largest OCSP response, in bytes; real ones have about two thousand.
const OCSP_MAX: u64 = 64 << 10;

/// Reads files for one part of the configuration.
pub struct Files<'a> {
    pub d: &'a mut Diagnostics,
}

impl Files<'_> {
    /// The path as seen from the file that it is written in.
    pub fn resolve(&self, path: &Located<PathBuf>) -> PathBuf {
        let source = path.span.as_ref().and_then(|span| self.d.source(span.file));
        let base = source.and_then(|source| source.path.parent()).unwrap_or(Path::new(""));
        base.join(&path.value)
    }

    fn bytes(&mut self, path: &Located<PathBuf>, most: u64) -> Option<(PathBuf, Vec<u8>)> {
        let full = self.resolve(path);
        match read_file(&full, most) {
            Ok(bytes) => Some((full, bytes)),
            Err(why) => {
                self.d.error(path.span.clone(), format!("cannot read {}: {why}", full.display()));
                None
            }
        }
    }

    /// The certificates of a PEM file as text, for those who read it themselves.
    pub fn certificates_text(&mut self, path: &Located<PathBuf>) -> Option<Vec<u8>> {
        self.certificates(path)?;
        self.bytes(path, PEM_MAX).map(|(_, bytes)| bytes)
    }

    /// The same of a private key.
    pub fn key_text(&mut self, path: &Located<PathBuf>) -> Option<Vec<u8>> {
        self.key(path)?;
        self.bytes(path, PEM_MAX).map(|(_, bytes)| bytes)
    }

    /// The certificates of a PEM file, at least one.
    pub fn certificates(&mut self, path: &Located<PathBuf>) -> Option<Vec<CertificateDer<'static>>> {
        let (full, bytes) = self.bytes(path, PEM_MAX)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let why = match found {
            Ok(list) if !list.is_empty() => return Some(list),
            Ok(_) => "it has no PEM section CERTIFICATE".to_owned(),
            Err(error) => error.to_string(),
        };
        self.d.error(path.span.clone(), format!("{} is not a certificate: {why}", full.display()));
        None
    }

    /// The first private key of a PEM file. Nothing of its content is ever shown.
    pub fn key(&mut self, path: &Located<PathBuf>) -> Option<PrivateKeyDer<'static>> {
        let (full, bytes) = self.bytes(path, PEM_MAX)?;
        if let Ok(key) = PrivateKeyDer::from_pem_slice(&bytes) {
            return Some(key);
        }
        let encrypted = memchr::memmem::find(&bytes, b"ENCRYPTED").is_some();
        let found = self.d.error(path.span.clone(), format!("{} has no private key that can be used", full.display()));
        if encrypted {
            found
                .label("it is encrypted")
                .help("decrypt it (`openssl pkey -in FILE -out FILE`) and let file permissions protect it");
        } else {
            found.label("there is no PEM section PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY");
        }
        None
    }

    /// An OCSP response in DER (RFC 6960 §4.2.1): a sequence whose first element is the status "successful".
    pub fn ocsp(&mut self, path: &Located<PathBuf>) -> Option<Vec<u8>> {
        let (full, bytes) = self.bytes(path, OCSP_MAX)?;
        let body = match *bytes.as_slice() {
            [0x30, length, ref rest @ ..] if length < 0x80 => rest,
            [0x30, 0x81, _, ref rest @ ..] | [0x30, 0x82, _, _, ref rest @ ..] => rest,
            _ => &[],
        };
        if body.starts_with(&[0x0a, 0x01, 0x00]) {
            return Some(bytes);
        }
        self.d
            .error(path.span.clone(), format!("{} is not a successful OCSP response in DER", full.display()))
            .help("for example: openssl ocsp -issuer CA.pem -cert CERT.pem -url URL -respout FILE");
        None
    }

    pub fn error(&mut self, span: Option<Span>, message: String) {
        self.d.error(span, message);
    }
}
