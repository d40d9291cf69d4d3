//! Keys that requests are signed with, each bound to one algorithm of RFC 9421 section 3.3.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self as aws, ParsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use schemars::JsonSchema;
use serde::Deserialize;

/// The shortest secret, in bytes: the output of SHA-256.
const SECRET_MIN: usize = 32;

/// How requests are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum SignatureAlgorithm {
    HmacSha256,
    Ed25519,
    EcdsaP256Sha256,
    EcdsaP384Sha384,
    RsaPssSha512,
    #[serde(rename = "rsa-v1_5-sha256")]
    RsaV15Sha256,
}

impl SignatureAlgorithm {
    /// As the parameter `alg` names it.
    pub const fn name(self) -> &'static str {
        match self {
            SignatureAlgorithm::HmacSha256 => "hmac-sha256",
            SignatureAlgorithm::Ed25519 => "ed25519",
            SignatureAlgorithm::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            SignatureAlgorithm::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            SignatureAlgorithm::RsaPssSha512 => "rsa-pss-sha512",
            SignatureAlgorithm::RsaV15Sha256 => "rsa-v1_5-sha256",
        }
    }

    pub const fn is_secret(self) -> bool {
        matches!(self, SignatureAlgorithm::HmacSha256)
    }

    fn verification(self) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match self {
            SignatureAlgorithm::HmacSha256 => return None,
            SignatureAlgorithm::Ed25519 => &aws::ED25519,
            SignatureAlgorithm::EcdsaP256Sha256 => &aws::ECDSA_P256_SHA256_FIXED,
            SignatureAlgorithm::EcdsaP384Sha384 => &aws::ECDSA_P384_SHA384_FIXED,
            SignatureAlgorithm::RsaPssSha512 => &aws::RSA_PSS_2048_8192_SHA512,
            SignatureAlgorithm::RsaV15Sha256 => &aws::RSA_PKCS1_2048_8192_SHA256,
        })
    }
}

/// One key. Has no `Debug` that shows it, as it may be a secret.
pub struct VerifyKey {
    algorithm: SignatureAlgorithm,
    material: Material,
}

enum Material {
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyKey({})", self.algorithm.name())
    }
}

impl VerifyKey {
    /// A shared secret of at least 32 bytes. The error is a sentence without the secret.
    pub fn secret(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < SECRET_MIN {
            return Err(format!("the secret has {} bytes, and hmac-sha256 needs {SECRET_MIN} or more", bytes.len()));
        }
        let material = Material::Secret(Box::new(hmac::Key::new(hmac::HMAC_SHA256, bytes)));
        Ok(VerifyKey { algorithm: SignatureAlgorithm::HmacSha256, material })
    }

    /// A public key in PEM (`PUBLIC KEY`, RFC 7468). The error is a sentence.
    pub fn public(algorithm: SignatureAlgorithm, pem: &[u8]) -> Result<Self, String> {
        let verification = algorithm.verification().ok_or_else(|| "it takes a secret and no public key".to_owned())?;
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| "it is not a public key in PEM".to_owned())?;
        let wrong = |_| format!("it is not a key for {}", algorithm.name());
        let key = ParsedPublicKey::new(verification, der.as_ref()).map_err(wrong)?;
        Ok(VerifyKey { algorithm, material: Material::Public(key) })
    }

    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            // Compares in constant time.
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}
