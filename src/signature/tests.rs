//! The examples of RFC 9421, and what is no good signature.

use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;

/// Appendix B.1.2.
const RSA_PSS: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAr4tmm3r20Wd/PbqvP1s2
+QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct+Lh1GH45x28Rw3Ry53mm+
oAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHq
gDsznjPFmTOtCEcN2Z1FpWgchwuYLPL+Wokqltd11nqqzi+bJ9cvSKADYdUAAN5W
Utzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4
aOT9v6d+nb4bnNkQVklLQ3fVAvJm+xdDOp9LCNCN48V2pnDOkFV6+U9nV5oyc6XI
2wIDAQAB
-----END PUBLIC KEY-----
";
/// Appendix B.1.4.
const ED25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----
";
/// Appendix B.1.5.
const SECRET: &str = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";
const CREATED: u64 = 1_618_884_473;

fn keys() -> Vec<(&'static str, VerifyKey)> {
    vec![
        ("test-key-rsa-pss", VerifyKey::public(SignatureAlgorithm::RsaPssSha512, RSA_PSS.as_bytes()).unwrap()),
        ("test-key-ed25519", VerifyKey::public(SignatureAlgorithm::Ed25519, ED25519.as_bytes()).unwrap()),
        ("test-shared-secret", VerifyKey::secret(&STANDARD.decode(SECRET).unwrap()).unwrap()),
    ]
}

/// The test request of appendix B.2.
fn headers(input: &str, signature: &str) -> HeaderMap {
    let digest = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "example.com"),
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("content-type", "application/json"),
        ("content-digest", digest),
        ("content-length", "18"),
        ("signature-input", input),
        ("signature", signature),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    headers
}

fn rules(components: &[&str]) -> Rules {
    Rules {
        components: components.iter().map(|component| (*component).into()).collect(),
        max_age: Duration::from_secs(300),
        skew: Duration::from_secs(30),
        nonce: false,
        tag: None,
    }
}

fn ask(headers: &HeaderMap, rules: &Rules, now: u64) -> Result<(Verified, &'static str), Refusal> {
    let parts = RequestParts {
        method: &Method::POST,
        scheme: "https",
        authority: "example.com",
        path: "/foo",
        query: Some("param=Value&Pet=dog"),
        headers,
    };
    let keys = keys();
    verify(&parts, rules, now, |id| keys.iter().find(|(known, _)| *known == id).map(|(id, key)| (key, *id)))
}

const B21: (&str, &str) = (
    r#"sig-b21=();created=1618884473;keyid="test-key-rsa-pss";nonce="b3k2pp5k7z-50gnwp.yemd""#,
    "sig-b21=:d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q==:",
);
const B23: (&str, &str) = (
    r#"sig-b23=("date" "@method" "@path" "@query" "@authority" "content-type" "content-digest" "content-length");created=1618884473;keyid="test-key-rsa-pss""#,
    "sig-b23=:bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA==:",
);
const B25: (&str, &str) = (
    r#"sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#,
    "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
);
const B26: (&str, &str) = (
    r#"sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#,
    "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:",
);

#[test]
fn the_examples_of_the_rfc_verify() {
    for ((input, signature), id) in
        [(B21, "test-key-rsa-pss"), (B23, "test-key-rsa-pss"), (B25, "test-shared-secret"), (B26, "test-key-ed25519")]
    {
        let (verified, found) = ask(&headers(input, signature), &rules(&[]), CREATED).unwrap();
        assert_eq!((found, verified.digest, verified.until), (id, input.contains("content-digest"), CREATED + 330), "{input}");
    }
}

#[test]
fn a_signature_is_for_one_request_only() {
    for (input, signature) in [B23, B26, B25] {
        for (name, value) in [("date", "Tue, 20 Apr 2021 02:07:56 GMT"), ("content-type", "application/xml")] {
            let mut changed = headers(input, signature);
            changed.insert(name, value.parse().unwrap());
            assert_eq!(ask(&changed, &rules(&[]), CREATED).unwrap_err(), Refusal::Signature, "{name}");
            changed.remove(name);
            assert_eq!(ask(&changed, &rules(&[]), CREATED).unwrap_err(), Refusal::Component, "{name}");
            let mut twice = headers(input, signature);
            twice.append(name, "x".parse().unwrap());
            assert_eq!(ask(&twice, &rules(&[]), CREATED).unwrap_err(), Refusal::Signature, "{name}");
        }
    }
}

#[test]
fn parameters_cannot_be_changed_or_left_out() {
    let refusal = |input: &str, signature: &str| ask(&headers(input, signature), &rules(&[]), CREATED).unwrap_err();
    let (input, signature) = B25;
    assert_eq!(refusal(&input.replace("1618884473", "1618884474"), signature), Refusal::Signature);
    assert_eq!(refusal(&format!("{input};nonce=\"a\""), signature), Refusal::Signature);
    assert_eq!(refusal(&format!("{input};alg=\"hmac-sha256\""), signature), Refusal::Signature, "it is signed as well");
    assert_eq!(refusal(&format!("{input};alg=\"ed25519\""), signature), Refusal::Algorithm);
    assert_eq!(refusal(&input.replace(";created=1618884473", ""), signature), Refusal::Expired, "no `created`");
    assert_eq!(refusal(&input.replace("test-shared-secret", "other"), signature), Refusal::UnknownKey);
    assert_eq!(refusal(&input.replace("test-shared-secret", "test-key-ed25519"), signature), Refusal::Signature);
    assert_eq!(refusal(&input.replace("\"date\"", "\"date\" \"date\""), signature), Refusal::Malformed);
    assert_eq!(refusal(&input.replace("\"date\"", "\"Date\""), signature), Refusal::Component);
    for component in
        ["\"@status\"", "\"@unknown\"", "\"date\";req", "\"date\";tr", "\"date\";sf", "\"@method\";req", "\"x-none\""]
    {
        assert_eq!(refusal(&input.replace("\"date\"", component), signature), Refusal::Component, "{component}");
    }
    for (input, signature) in [
        ("", signature),
        ("sig-b25", signature),
        ("sig-b25=1", signature),
        ("sig-b25=(date);created=1;keyid=\"test-shared-secret\"", "sig-b25=:AA==:"),
        (input, ""),
        (input, "other=:AA==:"),
        (input, "sig-b25=abc"),
        (input, "sig-b25=(:AA==:)"),
    ] {
        assert!(matches!(refusal(input, signature), Refusal::Malformed | Refusal::UnknownKey | Refusal::Expired), "{input}");
    }
    assert_eq!(refusal(input, "sig-b25=::"), Refusal::Signature);
    assert_eq!(refusal(input, "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE4=:"), Refusal::Signature);
}

#[test]
fn a_signature_has_its_time() {
    let (input, signature) = B25;
    let at = |now: u64| ask(&headers(input, signature), &rules(&[]), now).map(|_| ());
    assert_eq!(at(CREATED - 31), Err(Refusal::NotYet));
    assert_eq!(at(CREATED - 30), Ok(()));
    assert_eq!(at(CREATED + 329), Ok(()));
    assert_eq!(at(CREATED + 330), Err(Refusal::Expired));
    let expires = format!("{input};expires=1618884480");
    assert_eq!(ask(&headers(&expires, signature), &rules(&[]), CREATED + 40).unwrap_err(), Refusal::Expired);
}

#[test]
fn what_must_be_covered_must_be() {
    let with = |rules: &Rules, (input, signature): (&str, &str)| ask(&headers(input, signature), rules, CREATED).map(|_| ());
    assert_eq!(with(&rules(&["@method", "content-digest"]), B23), Ok(()));
    assert_eq!(with(&rules(&["@method"]), B25), Err(Refusal::Uncovered));
    assert_eq!(with(&Rules { nonce: true, ..rules(&[]) }, B21), Ok(()));
    assert_eq!(with(&Rules { nonce: true, ..rules(&[]) }, B25), Err(Refusal::Nonce));
    assert_eq!(with(&Rules { tag: Some("app".into()), ..rules(&[]) }, B25), Err(Refusal::Algorithm));
}

/// Signs with the shared secret of the appendix whatever the list says.
fn signed(headers: &mut HeaderMap, list: &str, base: &str) {
    let params = format!("{list};created={CREATED};keyid=\"test-shared-secret\"");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &STANDARD.decode(SECRET).unwrap());
    let tag = aws_lc_rs::hmac::sign(&key, format!("{base}\n\"@signature-params\": {params}").as_bytes());
    headers.insert(SIGNATURE_INPUT, format!("s={params}").parse().unwrap());
    headers.insert(SIGNATURE, format!("s=:{}:", STANDARD.encode(tag)).parse().unwrap());
}

#[test]
fn components_read_as_the_rfc_says() {
    for (list, base) in [
        (r#"("@target-uri")"#, "\"@target-uri\": https://example.com/foo?param=Value&Pet=dog"),
        (r#"("@scheme")"#, "\"@scheme\": https"),
        (r#"("@request-target")"#, "\"@request-target\": /foo?param=Value&Pet=dog"),
        (r#"("@query")"#, "\"@query\": ?param=Value&Pet=dog"),
        (r#"("@query-param";name="Pet")"#, "\"@query-param\";name=\"Pet\": dog"),
        (r#"("x-list")"#, "\"x-list\": a, b,  c"),
        (r#"("x-list";bs)"#, "\"x-list\";bs: :YQ==:, :YiwgIGM=:"),
        (r#"("x-dict";key="b")"#, "\"x-dict\";key=\"b\": 2;x=1"),
        (r#"("x-dict";key="c")"#, "\"x-dict\";key=\"c\": (1 2)"),
        (r#"("x-empty")"#, "\"x-empty\": "),
    ] {
        let mut headers = headers("s=()", "s=::");
        headers.insert("x-list", " a ".parse().unwrap());
        headers.append("x-list", "b,  c".parse().unwrap());
        headers.insert("x-dict", "a=1,   b=2;x=1,   c=(1   2)".parse().unwrap());
        headers.insert("x-empty", "".parse().unwrap());
        signed(&mut headers, list, base);
        assert!(ask(&headers, &rules(&[]), CREATED).is_ok(), "{list}");
    }
}

#[test]
fn one_signature_of_several_is_enough_if_its_key_is_known() {
    let (input, signature) = B25;
    let several = headers(&format!("x=(\"date\");created=1;keyid=\"other\", {input}"), &format!("x=:AAAA:, {signature}"));
    assert!(ask(&several, &rules(&[]), CREATED).is_ok());
    let many: Vec<String> = (0..SIGNATURES_MAX).map(|n| format!("s{n}=();keyid=\"{n}\"")).collect();
    let many = headers(&format!("{}, {input}", many.join(", ")), signature);
    assert_eq!(ask(&many, &rules(&[]), CREATED).unwrap_err(), Refusal::Malformed);
}

#[test]
fn a_key_is_bound_to_its_algorithm() {
    assert!(VerifyKey::secret(&[0; 31]).is_err());
    assert!(VerifyKey::public(SignatureAlgorithm::HmacSha256, ED25519.as_bytes()).is_err());
    assert!(VerifyKey::public(SignatureAlgorithm::EcdsaP256Sha256, ED25519.as_bytes()).is_err());
    assert!(VerifyKey::public(SignatureAlgorithm::Ed25519, RSA_PSS.as_bytes()).is_err());
    assert!(VerifyKey::public(SignatureAlgorithm::Ed25519, b"no").is_err());
}
