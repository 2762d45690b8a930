//! The rows as those who judge a simulation read them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{super::audit::Audited, Table};

impl Table {
    /// Every row of the audited tables, with the columns and words of Postgres.
    pub(in crate::store::memory) fn rows(&self) -> BTreeMap<(Audited, String), Value> {
        let mut rows = BTreeMap::new();
        for (incarnation, member) in &self.members {
            let row = json!({
                "incarnation": incarnation.0, "node_id": member.said.node_id,
                "state": member.state.as_str(),
            });
            rows.insert((Audited::Member, incarnation.to_string()), row);
        }
        for (id, session) in &self.sessions {
            let row = json!({
                "id": id.to_string(), "key_label": session.key_label,
                "owner": session.owner.map(|owner| owner.0), "epoch": session.epoch.0,
                "state": session.state.as_str(),
            });
            rows.insert((Audited::Session, id.to_string()), row);
        }
        for turn in self.turns() {
            let row = json!({
                "session": turn.session.to_string(), "epoch": turn.epoch.0, "no": turn.no,
                "state": turn.state.as_str(), "response": turn.response,
            });
            let key = format!("{} {} {}", turn.session, turn.epoch.0, turn.no);
            rows.insert((Audited::Turn, key), row);
        }
        rows
    }
}
