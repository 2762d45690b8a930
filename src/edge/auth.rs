//! Who a client is. The credential is read here and goes nowhere else but to the upstream.

use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    config::Auth,
    error::{Code, Error, Result},
    ids::Principal,
};

/// Codex names the account beside the token; one token may act for several.
const ACCOUNT: HeaderName = HeaderName::from_static("chatgpt-account-id");

/// Tells principals apart. The key of the hash is the cluster's, so that the database alone
/// does not let anybody test guesses of a credential.
pub struct Authenticator {
    auth: Auth,
    secret: [u8; 32],
}

impl Authenticator {
    #[must_use]
    pub fn new(auth: Auth, secret: [u8; 32]) -> Self {
        Self { auth, secret }
    }

    /// The principal of a request.
    ///
    /// # Errors
    /// `not_authorized` where keys are asked for and none that is known was shown.
    pub fn principal(&self, headers: &HeaderMap) -> Result<Principal> {
        match &self.auth {
            Auth::None => Ok(self.hash(&[b"nobody"])),
            Auth::Passthrough => {
                let credential =
                    headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
                let account = headers.get(ACCOUNT).map_or(&b""[..], |value| value.as_bytes());
                Ok(self.hash(&[b"credential", credential, account]))
            }
            Auth::ApiKey(keys) => {
                let shown = headers.get(AUTHORIZATION).and_then(|value| {
                    value.as_bytes().strip_prefix(b"Bearer ").map(Sha256::digest)
                });
                let Some(shown) = shown else {
                    let text = "an API key is needed: Authorization: Bearer …";
                    return Err(Error::new(Code::NotAuthorized, text));
                };
                // Every key is compared, so that time does not tell which one was near.
                let mut found = None;
                for key in keys {
                    if bool::from(key.sha256.ct_eq(shown.as_slice())) {
                        found = Some(key);
                    }
                }
                let key = found
                    .ok_or_else(|| Error::new(Code::NotAuthorized, "this API key is not known"))?;
                Ok(self.hash(&[b"key", key.name.as_bytes()]))
            }
        }
    }

    /// Whether the client's `Authorization` is ours and must not reach the upstream.
    #[must_use]
    pub fn consumes_credential(&self) -> bool {
        matches!(self.auth, Auth::ApiKey(_))
    }

    fn hash(&self, parts: &[&[u8]]) -> Principal {
        let mut principal = [0; 16];
        // HMAC takes keys of every length.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.secret) {
            for part in parts {
                mac.update(&(part.len() as u64).to_be_bytes());
                mac.update(part);
            }
            principal.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        }
        Principal(principal)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::config::ApiKey;

    fn bearer(token: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static(token));
        headers
    }

    #[test]
    fn credentials_make_principals_and_clusters_do_not_share_them() {
        let one = Authenticator::new(Auth::Passthrough, [1; 32]);
        let two = Authenticator::new(Auth::Passthrough, [2; 32]);
        let a = bearer("Bearer a");
        assert_eq!(one.principal(&a), one.principal(&a));
        assert_ne!(one.principal(&a), one.principal(&bearer("Bearer b")));
        assert_ne!(one.principal(&a), one.principal(&HeaderMap::new()));
        assert_ne!(one.principal(&a), two.principal(&a));
    }

    #[test]
    fn only_known_keys_are_let_in() {
        let sha256 = Sha256::digest(b"right").into();
        let auth = Auth::ApiKey(vec![ApiKey { name: "team".into(), sha256 }]);
        let auth = Authenticator::new(auth, [1; 32]);
        assert!(auth.principal(&bearer("Bearer right")).is_ok());
        for headers in [bearer("Bearer wrong"), bearer("right"), HeaderMap::new()] {
            assert_eq!(auth.principal(&headers).unwrap_err().code, Code::NotAuthorized);
        }
    }
}
