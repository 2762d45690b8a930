//! Who is let in, and for how long.

use std::{collections::HashMap, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use sha2::Digest;

use super::*;
use crate::config::{ApiKey, ApiKeys, Jwks, Jwt};

fn authenticator(auth: Auth, secret: u8) -> Authenticator {
    Authenticator::new(auth, Vec::new(), [secret; 32], Fetcher::with_native_roots().unwrap())
}

fn headers(text: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(text).unwrap())])
}

fn principal(auth: &Authenticator, headers: &HeaderMap) -> Result<Principal> {
    let identity = auth.identify(headers).now_or_never().expect("judged at once");
    identity.map(|identity| identity.principal)
}

#[test]
fn credentials_make_principals_and_clusters_do_not_share_them() {
    let one = authenticator(Auth::Passthrough, 1);
    let two = authenticator(Auth::Passthrough, 2);
    let a = headers("Bearer a");
    assert_eq!(principal(&one, &a), principal(&one, &a));
    assert_ne!(principal(&one, &a), principal(&one, &headers("Bearer b")));
    assert_ne!(principal(&one, &a), principal(&one, &HeaderMap::new()));
    assert_ne!(principal(&one, &a), principal(&two, &a));
}

#[test]
fn a_key_in_a_header_of_its_own_makes_a_principal_too() {
    let auth = authenticator(Auth::Passthrough, 1);
    let shown = |pairs: &[(&'static str, &'static str)]| {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        principal(&auth, &pairs.collect()).unwrap()
    };
    let all = [
        shown(&[]),
        shown(&[("api-key", "a")]),
        shown(&[("api-key", "b")]),
        shown(&[("x-api-key", "a")]),
        shown(&[("api-key", "a"), ("x-api-key", "a")]),
        shown(&[("authorization", "Bearer a")]),
        shown(&[("authorization", "Bearer a"), ("api-key", "a")]),
    ];
    for (n, one) in all.iter().enumerate() {
        assert!(all[..n].iter().all(|other| other != one), "{n} is somebody else");
    }
    assert_eq!(shown(&[("api-key", "a")]), all[1]);
}

#[test]
fn a_principal_by_authorization_is_the_same_in_every_release() {
    let auth = authenticator(Auth::Passthrough, 1);
    let known = principal(&auth, &headers("Bearer a")).unwrap();
    assert_eq!(
        known.to_string(),
        "47fe73334bce2b37ccb489a323983e93",
        "sessions in a database are of it"
    );
}

#[test]
fn only_known_keys_are_let_in() {
    let sha256 = Sha256::digest(b"right").into();
    let fixed = vec![ApiKey { name: "team".into(), sha256 }];
    let auth = authenticator(Auth::ApiKey(ApiKeys { fixed, file: None }), 1);
    assert!(principal(&auth, &headers("Bearer right")).is_ok());
    assert!(principal(&auth, &headers("bearer right")).is_ok());
    for headers in [headers("Bearer wrong"), headers("right"), HeaderMap::new()] {
        assert_eq!(principal(&auth, &headers).unwrap_err().code, Code::NotAuthorized);
    }
}

#[test]
fn a_page_of_a_foreign_origin_is_refused_whatever_it_shows() {
    let origins = vec!["https://app.example".into()];
    let auth =
        Authenticator::new(Auth::None, origins, [1; 32], Fetcher::with_native_roots().unwrap());
    let from =
        |origin: &'static str| HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
    assert!(principal(&auth, &HeaderMap::new()).is_ok());
    assert!(principal(&auth, &from("https://APP.example")).is_ok());
    for origin in ["https://app.example.evil", "http://app.example", "null", ""] {
        assert_eq!(principal(&auth, &from(origin)).unwrap_err().code, Code::Forbidden, "{origin}");
    }
}

/// An issuer with one Ed25519 key, made for this test.
struct Issuer {
    key: EncodingKey,
    jwks: Value,
}

impl Issuer {
    fn new(kid: &str) -> Self {
        use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
        let pair = Ed25519KeyPair::generate().unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let document = pair.to_pkcs8v1().unwrap();
        Self {
            key: EncodingKey::from_ed_der(document.as_ref()),
            jwks: json!({ "keys": [{
                "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x,
            }] }),
        }
    }

    fn token(&self, kid: &str, claims: &Value) -> HeaderMap {
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        headers(&format!("Bearer {}", encode(&header, claims, &self.key).unwrap()))
    }
}

fn claims() -> Value {
    let exp = get_current_timestamp() + 600;
    json!({ "sub": "ada", "iss": "https://id.example", "aud": ["ring", "other"], "exp": exp })
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

/// An authenticator that has read the keys of `file`.
fn tokens(file: &tempfile::NamedTempFile) -> (Authenticator, tokio_util::sync::DropGuard) {
    let rules = Jwt {
        jwks: Jwks::File(file.path().into()),
        algorithms: vec!["EdDSA".into(), "ES256".into()],
        issuer: Some("https://id.example".into()),
        audience: "ring".into(),
        principal_claim: "sub".into(),
        leeway: Duration::from_secs(1),
    };
    let auth = authenticator(Auth::Jwt(rules), 1);
    let stop = CancellationToken::new();
    auth.follow(&TaskTracker::new(), &stop);
    (auth, stop.drop_guard())
}

fn write(file: &tempfile::NamedTempFile, jwks: &Value) {
    std::fs::write(file.path(), jwks.to_string()).unwrap();
}

#[tokio::test]
async fn a_signed_token_for_this_service_is_let_in_and_every_other_is_not() {
    let (issuer, other) = (Issuer::new("k1"), Issuer::new("k1"));
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, &issuer.jwks);
    let (auth, _running) = tokens(&file);
    let ada = auth.identify(&issuer.token("k1", &claims())).await.unwrap();
    let again = auth.identify(&issuer.token("k1", &with("jti", "2"))).await.unwrap();
    assert_eq!(ada.principal, again.principal);
    let bob = auth.identify(&issuer.token("k1", &with("sub", "bob"))).await.unwrap();
    assert_ne!(ada.principal, bob.principal);

    let now = get_current_timestamp();
    let hs256 = {
        // The classic: the public key as the secret of a symmetric algorithm.
        let key =
            EncodingKey::from_secret(issuer.jwks["keys"][0]["x"].as_str().unwrap().as_bytes());
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) };
        headers(&format!("Bearer {}", encode(&header, &claims(), &key).unwrap()))
    };
    let unsigned = {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "alg": "none", "kid": "k1" }));
        headers(&format!("Bearer {header}.{}.", part(claims())))
    };
    let refused = HashMap::from([
        ("foreign key", other.token("k1", &claims())),
        ("unknown key", issuer.token("k2", &claims())),
        ("expired", issuer.token("k1", &with("exp", now - 60))),
        ("not yet", issuer.token("k1", &with("nbf", now + 60))),
        ("audience", issuer.token("k1", &with("aud", "elsewhere"))),
        ("issuer", issuer.token("k1", &with("iss", "https://evil.example"))),
        ("no end", issuer.token("k1", &with("exp", Value::Null))),
        ("no subject", issuer.token("k1", &with("sub", ""))),
        ("symmetric", hs256),
        ("unsigned", unsigned),
        ("nonsense", headers("Bearer a.b.c")),
        ("nothing", HeaderMap::new()),
    ]);
    for (what, headers) in refused {
        let refusal = auth.identify(&headers).await.err();
        assert_eq!(refusal.map(|error| error.code), Some(Code::NotAuthorized), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_good_until_it_expires_and_no_longer() {
    let issuer = Issuer::new("k1");
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, &issuer.jwks);
    let (auth, _running) = tokens(&file);
    let soon = with("exp", get_current_timestamp() + 60);
    let identity = auth.identify(&issuer.token("k1", &soon)).await.unwrap();
    let began = Instant::now();
    identity.ended().expect("tokens end").await;
    let lasted = began.elapsed().as_secs();
    // One second of leeway; the wall clock counts whole seconds.
    assert!((59..=62).contains(&lasted), "{lasted}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_issuer_adds_is_found_without_a_restart() {
    let (old, new) = (Issuer::new("k1"), Issuer::new("k2"));
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, &old.jwks);
    let (auth, _running) = tokens(&file);
    auth.identify(&old.token("k1", &claims())).await.unwrap();
    write(&file, &new.jwks);
    tokio::time::sleep(Duration::from_secs(30)).await;
    auth.identify(&new.token("k2", &claims())).await.unwrap();
    assert!(auth.identify(&old.token("k1", &claims())).await.is_err());
}

/// A set with a key of each.
fn set(issuers: &[&Issuer]) -> Value {
    let keys: Vec<_> = issuers.iter().map(|issuer| issuer.jwks["keys"][0].clone()).collect();
    json!({ "keys": keys })
}

/// Longer than a file goes unread, and shorter than a token is good.
const READ_AGAIN: Duration = Duration::from_secs(30);

fn is_good(identity: &Identity) -> bool {
    identity.ended().expect("tokens end").now_or_never().is_none()
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_published_no_more_ends_its_tokens_and_no_others() {
    let (gone, stays, replaced) = (Issuer::new("k1"), Issuer::new("k2"), Issuer::new("k3"));
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, &set(&[&gone, &stays, &replaced]));
    let (auth, _running) = tokens(&file);
    let ada = auth.identify(&gone.token("k1", &claims())).await.unwrap();
    let bob = auth.identify(&stays.token("k2", &claims())).await.unwrap();
    let eve = auth.identify(&replaced.token("k3", &claims())).await.unwrap();

    // What is said beside a key does not make it another; other material under its name does.
    let mut next = set(&[&Issuer::new("k3"), &stays]);
    next["keys"][1].as_object_mut().unwrap().remove("alg");
    write(&file, &next);
    let began = Instant::now();
    ada.ended().expect("tokens end").await;
    assert!(began.elapsed() < READ_AGAIN, "{:?}", began.elapsed());
    assert!(!is_good(&eve), "signed by what is published no more");
    tokio::time::sleep(READ_AGAIN).await;
    assert!(is_good(&bob));

    // One that stayed once can still go.
    write(&file, &gone.jwks);
    tokio::time::sleep(READ_AGAIN).await;
    assert!(!is_good(&bob));
}

/// A set with a key of each, under no name or under these.
fn renamed(issuers: &[&Issuer], kids: Option<&[&str]>) -> Value {
    let mut set = set(issuers);
    for (n, key) in set["keys"].as_array_mut().unwrap().iter_mut().enumerate() {
        let key = key.as_object_mut().unwrap();
        match kids {
            Some(kids) => key.insert("kid".into(), kids[n].into()),
            None => key.remove("kid"),
        };
    }
    set
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_still_published_ends_no_token_whatever_its_name() {
    let (old, new) = (Issuer::new("k1"), Issuer::new("k2"));
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, &old.jwks);
    let (auth, _running) = tokens(&file);
    let ada = auth.identify(&old.token("k1", &claims())).await.unwrap();
    for set in [
        renamed(&[&old], Some(&["k3"])),
        renamed(&[&old], None),
        renamed(&[&old, &new], None),
        renamed(&[&new, &old], Some(&["k4", "k4"])),
        renamed(&[&old, &new], Some(&["k4", "k4"])),
    ] {
        write(&file, &set);
        tokio::time::sleep(READ_AGAIN).await;
        assert!(is_good(&ada), "{set}");
    }
    // Also when another has had its name since.
    write(&file, &renamed(&[&new], Some(&["k4"])));
    tokio::time::sleep(READ_AGAIN).await;
    assert!(!is_good(&ada));
}

#[tokio::test(start_paused = true)]
async fn a_key_under_two_names_ends_the_tokens_of_both() {
    let (twice, other) = (Issuer::new("k1"), Issuer::new("k3"));
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, &renamed(&[&twice, &twice], Some(&["k1", "k2"])));
    let (auth, _running) = tokens(&file);
    let mut admitted = Vec::new();
    // Of the set's first read, of a later one, and of one more.
    for _ in 0..3 {
        for kid in ["k1", "k2"] {
            admitted.push(auth.identify(&twice.token(kid, &claims())).await.unwrap());
        }
        tokio::time::sleep(READ_AGAIN).await;
    }
    assert!(admitted.iter().all(is_good));
    write(&file, &other.jwks);
    tokio::time::sleep(READ_AGAIN).await;
    let good: Vec<_> = admitted.iter().map(is_good).collect();
    assert_eq!(good, [false; 6], "in the order in which they came");
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_be_read_end_no_token() {
    let issuer = Issuer::new("k1");
    let file = tempfile::NamedTempFile::new().unwrap();
    write(&file, &issuer.jwks);
    let (auth, _running) = tokens(&file);
    let ada = auth.identify(&issuer.token("k1", &claims())).await.unwrap();
    for unreadable in [json!("no set"), json!({ "keys": [] }), json!({ "error": "try again" })] {
        write(&file, &unreadable);
        tokio::time::sleep(READ_AGAIN).await;
        assert!(is_good(&ada), "{unreadable}");
    }
    file.close().unwrap();
    tokio::time::sleep(READ_AGAIN).await;
    assert!(is_good(&ada), "no file");
    auth.identify(&issuer.token("k1", &claims())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_the_issuers_keys_nobody_is_let_in_and_the_client_may_retry() {
    let issuer = Issuer::new("k1");
    let file = tempfile::NamedTempFile::new().unwrap();
    let (auth, _running) = tokens(&file);
    let refusal = auth.identify(&issuer.token("k1", &claims())).await.err().unwrap();
    assert_eq!(refusal.code, Code::SessionUnavailable);
}
