//! Between the types of this program and those of the wire.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::proto::{self, frame::Body};
use crate::{
    config::Route,
    error::{Blame, Code, Error},
    ids::{Epoch, Incarnation, Principal, SessionId},
    session::{Attach, AttachError, ClientKind, ClientLabel, Owner, Resume, Row},
    store::TurnKey,
    upstream::{Refusal, Upgrade},
    wire::CloseFrame,
};

/// Longest wait that a peer may have a client told, in milliseconds.
const MAX_RETRY_MS: u64 = 3_600_000;

pub(super) fn headers_out(headers: &HeaderMap) -> Vec<proto::Header> {
    let header = |(name, value): (&HeaderName, &HeaderValue)| proto::Header {
        name: name.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    headers.iter().map(header).collect()
}

/// Headers that are not valid are left out: a peer cannot make us emit them.
pub(super) fn headers_in(headers: Vec<proto::Header>) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for header in headers {
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(header.name), HeaderValue::from_maybe_shared(header.value))
        {
            map.append(name, value);
        }
    }
    map
}

/// The session of an id; None if that is not one.
pub(super) fn session_in(id: &Bytes) -> Option<SessionId> {
    id.as_ref().try_into().ok().map(SessionId)
}

pub(super) fn attach_out(attach: &Attach, hop: u32) -> proto::Attach {
    proto::Attach {
        session: Bytes::copy_from_slice(&attach.session.0),
        principal: Bytes::copy_from_slice(&attach.principal.0),
        route: attach.route.path.clone(),
        key_label: attach.key_label.clone(),
        hop,
        min_epoch: attach.min_epoch.0,
        last_seq: attach.last_seq,
        path_and_query: attach.upgrade.path_and_query.clone(),
        headers: headers_out(&attach.upgrade.headers),
        subprotocols: attach.upgrade.subprotocols.clone(),
        edge_node: attach.client.edge_node.to_string(),
        client_kind: attach.client.kind.as_str().to_owned(),
        last_epoch: attach.last_epoch.map(|epoch| epoch.0),
        turn_key: attach.turn_key.map(|key| Bytes::copy_from_slice(&key.0)),
        reads: attach.reads,
        free_epoch: match attach.row {
            Row::Free(epoch) => Some(epoch.0),
            Row::Unknown | Row::Missing => None,
        },
    }
}

/// None when the peer asks for something malformed, or for a route that we do not have.
pub(super) fn attach_in(attach: proto::Attach, routes: &[Arc<Route>]) -> Option<Attach> {
    let route = routes.iter().find(|route| route.path == attach.route)?;
    Some(Attach {
        session: session_in(&attach.session)?,
        row: attach.free_epoch.map_or(Row::Unknown, |epoch| Row::Free(Epoch(epoch))),
        principal: Principal(attach.principal.as_ref().try_into().ok()?),
        route: Arc::clone(route),
        key_label: attach.key_label,
        upgrade: Upgrade {
            path_and_query: attach.path_and_query,
            headers: headers_in(attach.headers),
            subprotocols: attach.subprotocols,
        },
        reads: attach.reads,
        last_seq: attach.last_seq,
        last_epoch: attach.last_epoch.map(Epoch),
        turn_key: match attach.turn_key {
            Some(key) => Some(TurnKey(key.as_ref().try_into().ok()?)),
            None => None,
        },
        min_epoch: Epoch(attach.min_epoch),
        client: ClientLabel {
            edge_node: attach.edge_node.into(),
            kind: ClientKind::parse(&attach.client_kind),
        },
    })
}

pub(super) fn resume_out(resume: Resume) -> (proto::Resume, u64) {
    match resume {
        Resume::New => (proto::Resume::New, 0),
        Resume::Ok => (proto::Resume::Ok, 0),
        Resume::Gap { floor } => (proto::Resume::Gap, floor),
    }
}

pub(super) fn resume_in(resume: proto::Resume, floor: u64) -> Resume {
    match resume {
        proto::Resume::New => Resume::New,
        proto::Resume::Ok => Resume::Ok,
        // What we do not understand must not pass for complete.
        proto::Resume::Gap | proto::Resume::Unspecified => Resume::Gap { floor },
    }
}

pub(super) fn error_out(error: AttachError, ring_version: i64) -> Body {
    match error {
        AttachError::NotOwner(owner) => Body::NotOwner(proto::NotOwner {
            owner: owner.incarnation.0,
            addr: owner.addr,
            epoch: owner.epoch.0,
            ring_version,
        }),
        AttachError::Refused(refusal) => {
            let error = Error::new(Code::UpstreamUnavailable, "the upstream refused the upgrade");
            Body::Fault(proto::Fault {
                upstream_status: Some(u32::from(refusal.status)),
                headers: headers_out(&refusal.headers),
                body: refusal.body,
                ..fault_out(&error)
            })
        }
        AttachError::Failed(error) => Body::Fault(fault_out(&error)),
    }
}

pub(super) fn fault_out(error: &Error) -> proto::Fault {
    proto::Fault {
        code: error.code.as_str().to_owned(),
        blame: error.blame.label().to_owned(),
        message: error.message.clone(),
        retry_after_ms: error.after.and_then(|after| u64::try_from(after.as_millis()).ok()),
        ..proto::Fault::default()
    }
}

pub(super) fn fault_in(fault: proto::Fault) -> AttachError {
    if let Some(status) = fault.upstream_status.and_then(|status| u16::try_from(status).ok()) {
        let (headers, body) = (headers_in(fault.headers), fault.body);
        return AttachError::Refused(Box::new(Refusal { status, headers, body }));
    }
    AttachError::Failed(failure_in(fault))
}

pub(super) fn failure_in(fault: proto::Fault) -> Error {
    let code = Code::parse(&fault.code).unwrap_or(Code::Internal);
    let blame = [Blame::Client, Blame::Peer, Blame::Upstream, Blame::Store, Blame::Us]
        .into_iter()
        .find(|blame| blame.label() == fault.blame);
    // What a peer calls itself is a peer to us.
    let blame = match blame {
        Some(Blame::Us) | None => Blame::Peer,
        Some(blame) => blame,
    };
    let error = Error::new(code, fault.message).blame(blame);
    match fault.retry_after_ms {
        Some(after) => error.after(Duration::from_millis(after.min(MAX_RETRY_MS))),
        None => error,
    }
}

pub(super) fn owner_in(not_owner: proto::NotOwner) -> Owner {
    Owner {
        incarnation: Incarnation(not_owner.owner),
        addr: not_owner.addr,
        epoch: Epoch(not_owner.epoch),
    }
}

pub(super) fn close_out(frame: Option<CloseFrame>) -> proto::Close {
    frame.map_or_else(proto::Close::default, |frame| proto::Close {
        code: u32::from(frame.code),
        reason: frame.reason,
    })
}

pub(super) fn close_in(close: proto::Close) -> Option<CloseFrame> {
    let code = u16::try_from(close.code).ok().filter(|code| *code != 0)?;
    Some(CloseFrame { code, reason: close.reason })
}
