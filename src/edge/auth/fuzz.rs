//! Credentials, and the keys that judge them.

use std::{sync::LazyLock, time::Duration};

use futures_util::FutureExt;
use sha2::Digest;
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::config::{ApiKey, ApiKeys, Jwks, Jwt};

/// What is accepted in mode `api_key`.
const KEY: &[u8] = b"right";

/// Public keys of three kinds: an HMAC over one of them, or a key in the token's own header,
/// must not count.
const JWKS: &[u8] = br#"{"keys":[
{"kty":"OKP","crv":"Ed25519","kid":"ed","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
{"kty":"EC","crv":"P-256","kid":"ec","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
{"kty":"RSA","kid":"rsa","e":"AQAB","n":"n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw"}
]}"#;

static ALLOWED: LazyLock<Option<[Authenticator; 3]>> = LazyLock::new(|| {
    let fetcher = Fetcher::with_native_roots().ok()?;
    let sha256 = sha2::Sha256::digest(KEY).into();
    let keys = ApiKeys { fixed: vec![ApiKey { name: "team".into(), sha256 }], file: None };
    Some([Auth::None, Auth::Passthrough, Auth::ApiKey(keys)].map(|auth| {
        let origins = vec!["https://app.example".to_owned()];
        Authenticator::new(auth, origins, [7; 32], fetcher.clone())
    }))
});

static TOKENS: LazyLock<Option<Arc<Tokens>>> = LazyLock::new(|| {
    let rules = Jwt {
        jwks: Jwks::File("unread".into()),
        algorithms: ["RS256", "ES256", "EdDSA"].map(str::to_owned).into(),
        issuer: None,
        audience: "ring".into(),
        principal_claim: "sub".into(),
        leeway: Duration::from_secs(1),
    };
    let tokens = Tokens::new(rules, Fetcher::with_native_roots().ok()?);
    tokens.learn(JWKS).ok()?;
    Some(tokens)
});

static RUNTIME: LazyLock<Option<Runtime>> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().ok());

/// The `Authorization` and `Origin` of a request, a line each.
pub fn credential(data: &[u8]) {
    let Some(allowed) = &*ALLOWED else { return };
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    for name in [AUTHORIZATION, ORIGIN] {
        if let Some(Ok(value)) = lines.next().map(HeaderValue::from_bytes) {
            headers.insert(name, value);
        }
    }
    for authenticator in allowed {
        let judged = authenticator.identify(&headers).now_or_never();
        assert!(judged.is_some(), "judged at once");
        if let (Mode::Keys(_), Some(Ok(_))) = (&authenticator.mode, judged) {
            let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
            assert!(shown.eq_ignore_ascii_case(b"Bearer right") && shown.ends_with(KEY));
        }
    }
}

/// A token: without the private keys none is good.
pub fn token(data: &[u8]) {
    let (Some(tokens), Ok(token)) = (&*TOKENS, str::from_utf8(data)) else { return };
    // A token that names an unknown key waits for the keys to be read again, by a timer.
    let _timers = RUNTIME.as_ref().map(Runtime::enter);
    if let Some(judged) = tokens.prove(token).now_or_never() {
        assert!(judged.is_err(), "a token was forged");
    }
}

/// What an issuer publishes.
pub fn jwks(data: &[u8]) {
    if let Some(tokens) = &*TOKENS {
        drop(tokens.keys_of(data));
    }
}
