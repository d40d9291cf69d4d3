//! Argon2id hashes of passwords (RFC 9106), in PHC string format.

use crate::value::text_value;
use argon2::password_hash::SaltString;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The most memory of one verification, in KiB. Whoever can send a request can make the gateway spend it.
const MEMORY_MAX: u32 = 64 * 1024;
/// The most passes over it.
const PASSES_MAX: u32 = 10;
/// The most lanes.
const LANES_MAX: u32 = 4;
/// The longest password that is looked at, in bytes.
pub const PASSWORD_MAX: usize = 1024;

/// A hash whose parameters are within bounds. Cloning shares it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Arc<str>);

text_value!(
    PasswordHash,
    "argon2id hash",
    r"^\$argon2id\$v=19\$.+$",
    "An argon2id hash in PHC format: $argon2id$v=19$m=19456,t=2,p=1$SALT$HASH"
);

impl PasswordHash {
    /// Of a new password, at the cost that OWASP asks for (19 MiB, 2 passes, 1 lane) and with a random salt. The error is a
    /// sentence without the password.
    pub fn new(password: &[u8]) -> Result<Self, String> {
        if password.is_empty() || password.len() > PASSWORD_MAX {
            return Err(format!("a password has 1 to {PASSWORD_MAX} bytes"));
        }
        let mut salt = [0; 16];
        SystemRandom::new().fill(&mut salt).map_err(|_| "the system has no random numbers")?;
        let salt = SaltString::encode_b64(&salt).map_err(|e| e.to_string())?;
        let hash = Argon2::default().hash_password(password, &salt).map_err(|e| e.to_string())?;
        Ok(PasswordHash(hash.to_string().into()))
    }

    /// Whether `password` is the one. Takes tens of milliseconds and megabytes, so never call it on an async worker.
    pub fn verify(&self, password: &[u8]) -> bool {
        let Ok((hash, argon2)) = parse(&self.0) else { return false };
        password.len() <= PASSWORD_MAX && argon2.verify_password(password, &hash).is_ok()
    }

    /// What one verification takes: memory, passes and lanes.
    pub fn cost(&self) -> (u32, u32, u32) {
        // What does not parse was never made.
        parse(&self.0).map_or((0, 0, 0), |(_, argon2)| {
            let params = argon2.params();
            (params.m_cost(), params.t_cost(), params.p_cost())
        })
    }

    /// The text of the hash, for keys of caches. Not for logs: guesses could be tried on it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn parse(text: &str) -> Result<(argon2::PasswordHash<'_>, Argon2<'static>), String> {
    let why = |why: &dyn fmt::Display| format!("this is not an argon2id hash in PHC format: {why}");
    let hash = argon2::PasswordHash::new(text).map_err(|e| why(&e))?;
    if hash.algorithm != argon2::ARGON2ID_IDENT || hash.version != Some(Version::V0x13.into()) {
        return Err(why(&"it must begin with $argon2id$v=19$"));
    }
    if hash.hash.is_none() || hash.salt.is_none() {
        return Err(why(&"its salt or its hash is missing"));
    }
    let params = Params::try_from(&hash).map_err(|e| why(&e))?;
    if params.m_cost() > MEMORY_MAX || params.t_cost() > PASSES_MAX || params.p_cost() > LANES_MAX {
        return Err(format!("the hash costs more than m={MEMORY_MAX},t={PASSES_MAX},p={LANES_MAX}, and every guess would"));
    }
    Ok((hash, Argon2::new(Algorithm::Argon2id, Version::V0x13, params)))
}

impl FromStr for PasswordHash {
    type Err = String;
    /// The text is not quoted in the error: someone may have written the password itself.
    fn from_str(text: &str) -> Result<Self, String> {
        parse(text)?;
        Ok(PasswordHash(text.into()))
    }
}

/// Required to write defaults; a hash is never one.
impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("$argon2id$…")
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

#[cfg(test)]
/// A hash with the least cost that there is.
pub(crate) fn cheap(password: &str) -> String {
    with_passes(password, 1)
}

#[cfg(test)]
/// One with so many passes.
pub(crate) fn with_passes(password: &str, passes: u32) -> String {
    let salt = SaltString::encode_b64(b"saltsaltsalt").unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, passes, 1, None).unwrap());
    argon2.hash_password(password.as_bytes(), &salt).unwrap().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_itself_verifies() {
        let hash: PasswordHash = cheap("hunter2").parse().unwrap();
        assert!(hash.verify(b"hunter2"));
        for wrong in ["", "hunter", "Hunter2", "hunter2 ", "hunter2\0", &"x".repeat(PASSWORD_MAX + 1)] {
            assert!(!hash.verify(wrong.as_bytes()), "{wrong:?}");
        }
    }

    #[test]
    fn a_new_hash_is_one_that_the_configuration_takes() {
        let hash = PasswordHash::new(b"hunter2").unwrap();
        assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.expose());
        let read: PasswordHash = hash.expose().parse().unwrap();
        assert!(read.verify(b"hunter2") && !read.verify(b"hunter3"));
        assert!(PasswordHash::new(b"").is_err());
    }

    #[test]
    fn hashes_that_are_weak_broken_or_too_dear_are_refused_and_not_repeated() {
        let good = cheap("x");
        for wrong in [
            "hunter2",
            "",
            &good.replace("argon2id", "argon2i"),
            &good.replace("v=19", "v=16"),
            &good.replace("m=8", "m=1048576"),
            &good.replace("t=1", "t=1000"),
            &good.replace("p=1", "p=64"),
            &good[..good.rfind('$').unwrap()],
        ] {
            let error = wrong.parse::<PasswordHash>().unwrap_err();
            assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
        }
    }
}
