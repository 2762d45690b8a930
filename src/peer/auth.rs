//! How nodes prove themselves to each other: a shared token, or certificates.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use super::tls::{self, Files};
use crate::{
    config::{PeerSecurity, Secret},
    ring::Ring,
    store::Member,
};

/// Shows our token with every call: the first, where several are accepted.
#[derive(Clone)]
pub(super) struct Show(Option<MetadataValue<Ascii>>);

impl Show {
    pub(super) fn new(security: &PeerSecurity) -> anyhow::Result<Self> {
        let PeerSecurity::Tokens(tokens) = security else { return Ok(Self(None)) };
        let Some(token) = tokens.first() else { return Ok(Self(None)) };
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

/// Asks for a token, or for the certificate of a member, before anything of a call is read.
#[derive(Clone)]
pub(super) enum Ask {
    Nothing,
    Tokens(Arc<[Secret]>),
    /// The transport has checked the authority and the dates.
    Certificate(watch::Receiver<Arc<Ring>>),
}

impl Ask {
    pub(super) fn new(security: &PeerSecurity, ring: watch::Receiver<Arc<Ring>>) -> Self {
        match security {
            PeerSecurity::Tokens(tokens) => Self::Tokens(tokens.as_slice().into()),
            PeerSecurity::Plaintext => Self::Nothing,
            PeerSecurity::Mtls { .. } => Self::Certificate(ring),
        }
    }
}

impl Interceptor for Ask {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match self {
            Self::Nothing => Ok(request),
            Self::Tokens(tokens) => {
                let shown = request.metadata().get("authorization");
                let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
                // All of them, so that the time does not tell which one was right.
                let right =
                    |shown| tokens.iter().fold(false, |yes, token| yes | token.matches(shown));
                if shown.is_some_and(right) {
                    return Ok(request);
                }
                Err(Status::unauthenticated("the peer token is missing or wrong"))
            }
            Self::Certificate(ring) => {
                if shown(&request).is_some_and(|shown| names(shown, &ring.borrow(), |_| true)) {
                    return Ok(request);
                }
                // It may have joined a moment ago: it tries again.
                Err(Status::unauthenticated("the peer certificate names no member of this ring"))
            }
        }
    }
}

/// What the transport was shown by a caller.
pub(super) type Shown = TlsConnectInfo<TcpConnectInfo>;

/// What the caller showed; None without mTLS.
pub(super) fn shown<T>(request: &Request<T>) -> Option<&Shown> {
    request.extensions().get()
}

/// Whether the certificate that was shown names a living member that is meant.
pub(super) fn names(shown: &Shown, ring: &Ring, meant: impl Fn(&Member) -> bool) -> bool {
    let certificates = shown.peer_certs();
    let Some(own) = certificates.as_ref().and_then(|all| all.first()) else { return false };
    let members = ring.view.members.iter().filter(|member| member.state.is_alive());
    members.filter(|member| meant(member)).any(|member| tls::names(own, member))
}

/// The files of mTLS, if it is asked for.
pub(super) fn files(security: &PeerSecurity) -> Option<Files> {
    let PeerSecurity::Mtls { cert, key, ca } = security else { return None };
    Some(Files { cert: cert.clone(), key: key.clone(), ca: ca.clone() })
}
