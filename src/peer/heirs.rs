//! Conversations on their way to and from heirs.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::timeout;

use super::{
    convert::{headers_in, headers_out, session_in},
    incoming::Incoming,
    outgoing::Peers,
    proto::{self, Conversation, CutTurn, PastResponse},
};
use crate::{
    config::{MAX_NAME, Route},
    ids::{Incarnation, Principal, SessionId},
    session::{
        history::Past,
        replica::Heirs,
        warm::{Cut, Prepared, Warm},
    },
    upstream::Upgrade,
    wire::Batch,
};

/// How long an heir may take for one call.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long a node may take to let go of what it has: copies to others wait behind it.
const LET_GO: Duration = Duration::from_millis(250);

#[async_trait]
impl Heirs for Peers {
    async fn prepare(
        &self,
        heir: Incarnation,
        addr: &str,
        prepared: &[Prepared],
    ) -> Result<Vec<bool>, String> {
        let request = proto::PrepareRequest {
            target_incarnation: heir.0,
            conversations: prepared.iter().map(out).collect(),
            incarnation: prepared
                .first()
                .and_then(|prepared| prepared.from)
                .map_or(0, |from| from.0),
        };
        let asked = async {
            let mut client = self.client(heir, addr).await?;
            let response = client.prepare(request).await.map_err(|status| status.to_string())?;
            Ok(response.into_inner().kept)
        };
        timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    async fn let_go(
        &self,
        from: Incarnation,
        heir: Incarnation,
        addr: &str,
        sessions: &[SessionId],
    ) -> Result<(), String> {
        let request = proto::ForgetRequest {
            target_incarnation: heir.0,
            incarnation: from.0,
            sessions: sessions.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect(),
        };
        let asked = async {
            let mut client = self.client(heir, addr).await?;
            client.forget(request).await.map_err(|status| status.to_string())?;
            Ok(())
        };
        timeout(LET_GO, asked).await.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    async fn activate(
        &self,
        heir: Incarnation,
        addr: &str,
        session: SessionId,
    ) -> Result<(), String> {
        let request = proto::ActivateRequest {
            target_incarnation: heir.0,
            session: Bytes::copy_from_slice(&session.0),
        };
        let asked = async {
            let mut client = self.client(heir, addr).await?;
            client.activate(request).await.map_err(|status| status.to_string())?;
            Ok(())
        };
        timeout(TIMEOUT, asked).await.unwrap_or_else(|_| Err("no answer in time".into()))
    }
}

impl Incoming {
    /// Keeps what can be kept; whether each was.
    pub(super) fn keep_all(
        &self,
        from: Option<Incarnation>,
        conversations: Vec<Conversation>,
    ) -> Vec<bool> {
        let keep = |conversation| {
            conversation_in(conversation, from, &self.routes)
                .is_some_and(|prepared| self.registry.keep(prepared))
        };
        conversations.into_iter().map(keep).collect()
    }
}

fn out(prepared: &Prepared) -> Conversation {
    let warm = &prepared.warm;
    Conversation {
        session: Bytes::copy_from_slice(&prepared.session.0),
        principal: Bytes::copy_from_slice(&warm.principal.0),
        route: warm.route.path.clone(),
        key_label: warm.key_label.clone(),
        path_and_query: warm.upgrade.path_and_query.clone(),
        headers: headers_out(&warm.upgrade.headers),
        subprotocols: warm.upgrade.subprotocols.clone(),
        append: prepared.append,
        past: warm.past.iter().map(past_out).collect(),
        cut: warm.cut.iter().map(cut_out).collect(),
        shunned: warm.shunned.clone(),
    }
}

fn past_out(past: &Past) -> PastResponse {
    PastResponse {
        id: past.id.clone(),
        previous: past.previous.clone(),
        lane: past.lane.clone(),
        items: past.items.clone(),
    }
}

fn cut_out(cut: &Cut) -> CutTurn {
    CutTurn { response_id: cut.response_id.clone(), events: cut.events.bytes().clone() }
}

fn cut_in(cut: CutTurn) -> Option<Cut> {
    Some(Cut { response_id: cut.response_id, events: Batch::from_wire(cut.events)? })
}

/// None for what is malformed, or of a route that this node does not have.
pub(super) fn conversation_in(
    conversation: Conversation,
    from: Option<Incarnation>,
    routes: &[Arc<Route>],
) -> Option<Prepared> {
    let route = routes.iter().find(|route| route.path == conversation.route)?;
    let past = conversation.past.into_iter().map(|past| Past {
        id: past.id,
        previous: past.previous,
        lane: past.lane,
        items: past.items,
    });
    Some(Prepared {
        session: session_in(&conversation.session)?,
        from,
        append: conversation.append,
        warm: Warm {
            principal: Principal(conversation.principal.as_ref().try_into().ok()?),
            route: Arc::clone(route),
            key_label: conversation.key_label,
            upgrade: Upgrade {
                path_and_query: conversation.path_and_query,
                headers: headers_in(conversation.headers),
                subprotocols: conversation.subprotocols,
            },
            past: past.collect(),
            // No endpoint has a longer name.
            shunned: conversation.shunned.filter(|name| name.len() <= MAX_NAME),
            cut: conversation.cut.into_iter().filter_map(cut_in).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::config;

    fn prepared(shunned: Option<String>) -> Prepared {
        let warm = Warm {
            principal: Principal([2; 16]),
            route: Arc::clone(&config::fuzz::routes()[0]),
            key_label: "k".into(),
            upgrade: Upgrade::default(),
            past: Vec::new(),
            shunned,
            cut: Vec::new(),
        };
        Prepared { session: SessionId([1; 16]), from: None, append: true, warm }
    }

    /// What an heir makes of it.
    fn told(shunned: Option<String>) -> Option<String> {
        let bytes = out(&prepared(shunned)).encode_to_vec();
        let conversation = Conversation::decode(&*bytes).unwrap();
        conversation_in(conversation, None, config::fuzz::routes()).unwrap().warm.shunned
    }

    #[test]
    fn an_heir_is_told_which_endpoint_failed_the_session() {
        assert_eq!(told(Some("silent".into())), Some("silent".into()));
        assert_eq!(told(None), None);
        let longest = "x".repeat(MAX_NAME);
        assert_eq!(told(Some(longest.clone())), Some(longest.clone()));
        assert_eq!(told(Some(longest + "x")), None, "no endpoint has such a name");
    }

    #[test]
    fn the_endpoint_is_a_field_of_its_own_behind_what_earlier_releases_say() {
        let before = out(&prepared(None)).encode_to_vec();
        let said = out(&prepared(Some("silent".into()))).encode_to_vec();
        // Field 11, six bytes; without it nothing differs from what a release without it says.
        assert_eq!(said, [&*before, b"\x5a\x06silent"].concat());
    }
}
