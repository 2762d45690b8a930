//! How nodes prove themselves to each other: a shared token, or certificates.

use std::sync::Arc;

use anyhow::Context as _;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig},
};

use crate::config::{PeerSecurity, Secret};

/// Shows our token with every call.
#[derive(Clone)]
pub(super) struct Show(Option<MetadataValue<Ascii>>);

impl Show {
    pub(super) fn new(security: &PeerSecurity) -> anyhow::Result<Self> {
        let PeerSecurity::Token(token) = security else { return Ok(Self(None)) };
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.expose())
            .parse()
            .context("the peer token has characters that a header cannot carry")?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Show {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Asks for the token before anything of a call is read.
#[derive(Clone)]
pub(super) struct Ask(Option<Arc<Secret>>);

impl Ask {
    pub(super) fn new(security: &PeerSecurity) -> Self {
        match security {
            PeerSecurity::Token(token) => Self(Some(Arc::new(token.clone()))),
            PeerSecurity::Plaintext | PeerSecurity::Mtls { .. } => Self(None),
        }
    }
}

impl Interceptor for Ask {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.0 else { return Ok(request) };
        let shown = request.metadata().get("authorization");
        let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if shown.is_some_and(|shown| token.matches(shown)) {
            return Ok(request);
        }
        Err(Status::unauthenticated("the peer token is missing or wrong"))
    }
}

/// The client's half of mTLS, if it is asked for.
pub(super) fn client_tls(security: &PeerSecurity) -> anyhow::Result<Option<ClientTlsConfig>> {
    let Some((identity, ca)) = certificates(security)? else { return Ok(None) };
    Ok(Some(ClientTlsConfig::new().identity(identity).ca_certificate(ca)))
}

/// The server's half of mTLS, if it is asked for.
pub(super) fn server_tls(security: &PeerSecurity) -> anyhow::Result<Option<ServerTlsConfig>> {
    let Some((identity, ca)) = certificates(security)? else { return Ok(None) };
    Ok(Some(ServerTlsConfig::new().identity(identity).client_ca_root(ca)))
}

fn certificates(security: &PeerSecurity) -> anyhow::Result<Option<(Identity, Certificate)>> {
    let PeerSecurity::Mtls { cert, key, ca } = security else { return Ok(None) };
    let read = |path: &std::path::Path, what: &str| {
        std::fs::read(path).with_context(|| format!("peer {what} {}", path.display()))
    };
    let identity = Identity::from_pem(read(cert, "certificate")?, read(key, "key")?);
    Ok(Some((identity, Certificate::from_pem(read(ca, "authority")?))))
}
