//! Who may change something by the admin listener, and the record of who did, by whatever way.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Failure, listener::Caller};
use crate::{
    config::AdminToken,
    error::{Code, Error, Result},
    telemetry::AUDIT,
    upstream::read_text,
};

/// Largest file of a token, in bytes.
const MAX_FILE: usize = 4096;

/// Limit of reading it.
const READ: Duration = Duration::from_secs(2);

/// How somebody was recognised who may change things; a word of the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    /// By the admin token.
    Token,
    /// By being on this machine, where there is no token.
    Loopback,
    /// By what a signal to the process takes; not by the listener.
    Signal,
}

impl Actor {
    fn as_str(self) -> &'static str {
        match self {
            Self::Token => "admin-token",
            Self::Loopback => "loopback",
            Self::Signal => "signal",
        }
    }
}

/// Lets in who shows the token; without one, who comes from this machine. The file is read
/// each time, so that a token is rotated by writing it.
pub(super) async fn judge(
    token: &AdminToken,
    headers: &HeaderMap,
    peer: Option<SocketAddr>,
) -> Result<Actor> {
    let secret = match token {
        AdminToken::None => {
            return if is_here(peer) && !is_asked_by_name(headers) {
                Ok(Actor::Loopback)
            } else {
                let why = "without admin-token a node is changed from its own machine only, \
                           by its address or as localhost";
                Err(Error::new(Code::Forbidden, why))
            };
        }
        AdminToken::Fixed(secret) => secret.clone(),
        AdminToken::File(path) => match read_text(path.clone(), MAX_FILE, READ).await {
            Ok(text) => AdminToken::parse(&text).ok_or_else(unreadable)?,
            Err(reason) => {
                tracing::error!(file = %path.display(), reason, "the admin token cannot be read");
                return Err(unreadable());
            }
        },
    };
    let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let shown = shown.and_then(|shown| shown.strip_prefix(b"Bearer "));
    if shown.is_some_and(|shown| secret.matches(shown)) {
        return Ok(Actor::Token);
    }
    Err(Error::new(Code::NotAuthorized, "the admin token is missing or wrong"))
}

/// Refuses what a page of another site may have a browser ask, on this machine or at the end of an
/// operator's port-forward: the page has let its own name lead here (DNS rebinding), and to the
/// browser it and we are then one site. It cannot show the admin token.
pub(super) async fn refuse_rebound(
    State(token): State<Arc<AdminToken>>,
    peer: Option<Extension<ConnectInfo<Caller>>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = peer.map(|Extension(ConnectInfo(Caller(peer)))| peer);
    let headers = request.headers();
    if is_here(peer)
        && host(headers).is_some_and(|host| is_public(&host))
        && judge(&token, headers, peer).await != Ok(Actor::Token)
    {
        let why = "from its own machine this listener is known by its address, as localhost, \
                   by a name that only the cluster knows, or to who shows the admin token";
        return Failure::new(Code::Forbidden, why).into_response();
    }
    next.run(request).await
}

fn is_here(peer: Option<SocketAddr>) -> bool {
    peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback())
}

/// The host that the caller wants to speak to, empty if that is no host. Browsers always name one.
fn host(headers: &HeaderMap) -> Option<String> {
    let authority = Authority::try_from(headers.get(header::HOST)?.as_bytes());
    Some(authority.map_or_else(
        |_| String::new(),
        |authority| {
            authority.host().trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
        },
    ))
}

/// Whether the caller knows this listener by a name that is not the machine's own.
fn is_asked_by_name(headers: &HeaderMap) -> bool {
    host(headers).is_some_and(|name| name != "localhost" && name.parse::<IpAddr>().is_err())
}

/// Whether anybody may own that name. In the public DNS there are neither names of one label nor
/// these endings (RFC 6761, RFC 6762, ICANN's `internal`; `svc` is Kubernetes'); a sidecar hands
/// requests for them on from this machine.
fn is_public(name: &str) -> bool {
    const OURS: [&str; 4] = ["localhost", "local", "internal", "svc"];
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    name.is_empty()
        || name.parse::<IpAddr>().is_err() && ending.is_some_and(|ending| !OURS.contains(&ending))
}

fn unreadable() -> Error {
    Error::new(Code::Internal, "the admin token cannot be read; the node's log says why")
}

/// Writes an act to the audit log, in structured fields.
pub(crate) fn record(
    action: &'static str,
    actor: &Result<Actor>,
    peer: Option<SocketAddr>,
    outcome: &str,
) {
    let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
    match actor {
        Ok(actor) => tracing::info!(
            target: AUDIT, action, actor = actor.as_str(), peer, outcome, "administrative act"
        ),
        Err(error) => tracing::warn!(
            target: AUDIT, action, actor = "nobody", peer, outcome, reason = error.code.as_str(),
            "administrative act refused"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const HERE: &str = "127.0.0.1:1";
    const THERE: &str = "10.0.0.1:1";

    async fn judged(token: &AdminToken, shown: Option<&str>, peer: &str) -> Result<Actor, u16> {
        let mut headers = HeaderMap::new();
        if let Some(shown) = shown {
            headers.insert(header::AUTHORIZATION, format!("Bearer {shown}").parse().unwrap());
        }
        let peer = Some(peer.parse().unwrap());
        judge(token, &headers, peer).await.map_err(|error| error.code.status())
    }

    #[tokio::test]
    async fn without_a_token_only_this_machine_changes_things() {
        let none = AdminToken::None;
        assert_eq!(judged(&none, None, HERE).await, Ok(Actor::Loopback));
        assert_eq!(judged(&none, None, "[::ffff:127.0.0.1]:1").await, Ok(Actor::Loopback));
        assert_eq!(judged(&none, None, THERE).await, Err(403));
        assert!(judge(&none, &HeaderMap::new(), None).await.is_err());
    }

    #[tokio::test]
    async fn without_a_token_a_page_whose_name_was_made_to_lead_here_changes_nothing() {
        let asked_as = async |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            let peer = Some(HERE.parse().unwrap());
            judge(&AdminToken::None, &headers, peer).await.map_err(|error| error.code.status())
        };
        for host in ["127.0.0.1:9090", "localhost:9090", "LocalHost", "[::1]:9090", "10.0.0.7"] {
            assert_eq!(asked_as(host).await, Ok(Actor::Loopback), "{host}");
        }
        for host in ["evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert_eq!(asked_as(host).await, Err(403), "{host:?}");
        }
    }

    #[tokio::test]
    async fn with_a_token_nothing_else_counts() {
        let token = AdminToken::Fixed(Secret::new("a-token-of-the-operators"));
        assert_eq!(judged(&token, Some("a-token-of-the-operators"), THERE).await, Ok(Actor::Token));
        for shown in [None, Some(""), Some("a-token-of-the-operator"), Some("guess")] {
            assert_eq!(judged(&token, shown, HERE).await, Err(401), "{shown:?}");
        }
    }

    #[tokio::test]
    async fn a_token_in_a_file_is_rotated_by_writing_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = AdminToken::File(file.path().to_owned());
        std::fs::write(file.path(), "the-first-token-0123\n").unwrap();
        assert_eq!(judged(&token, Some("the-first-token-0123"), THERE).await, Ok(Actor::Token));
        std::fs::write(file.path(), "the-second-token-0123\n").unwrap();
        assert_eq!(judged(&token, Some("the-first-token-0123"), THERE).await, Err(401));
        assert_eq!(judged(&token, Some("the-second-token-0123"), THERE).await, Ok(Actor::Token));
        std::fs::write(file.path(), "").unwrap();
        assert_eq!(judged(&token, Some(""), HERE).await, Err(500), "an empty file opens nothing");
    }
}
