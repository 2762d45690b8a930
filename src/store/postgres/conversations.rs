//! Sealed parts of conversations.

use std::collections::BTreeMap;

use super::Postgres;
use crate::{
    ids::{Epoch, Incarnation, SessionId},
    store::{NewPart, Part, Result},
};

/// One statement for a batch. Parts are inserted only for sessions that somebody owns: what
/// comes after a session's end would otherwise outlive it. A whole part takes the place of
/// what is ordered before it, so never of what a later owner wrote.
const PUT: &str = "WITH given AS (SELECT g.* FROM \
     UNNEST($1::bytea[], $2::bigint[], $3::bigint[], $4::bytea[], $5::boolean[]) \
     AS g (session, epoch, part_no, sealed, whole) \
     JOIN session s ON s.id = g.session AND s.owner IS NOT NULL), \
     replaced AS (DELETE FROM conversation c USING given g WHERE g.whole \
     AND c.session = g.session AND (c.epoch, c.part_no) < (g.epoch, g.part_no)) \
     INSERT INTO conversation (session, epoch, part_no, sealed) \
     SELECT session, epoch, part_no, sealed FROM given ORDER BY session, epoch, part_no \
     ON CONFLICT (session, epoch, part_no) DO NOTHING";

const PARTS: &str = "SELECT epoch, part_no, sealed FROM conversation WHERE session = $1 \
     ORDER BY epoch, part_no LIMIT $2";

/// The fence is the session's row; the parts go with it.
const CLOSE: &str = "WITH closed AS (UPDATE session SET owner = NULL, state = 'CLOSED', \
     updated_at = clock_timestamp() WHERE id = $1 AND owner = $2 AND epoch = $3 RETURNING id), \
     forgotten AS (DELETE FROM conversation c USING closed WHERE c.session = closed.id) \
     SELECT id FROM closed";

impl Postgres {
    pub(super) async fn put_parts(&self, parts: &[NewPart]) -> Result<()> {
        // All writers lock in one order.
        let rows: BTreeMap<_, _> =
            parts.iter().map(|new| ((new.session, new.part.epoch, new.part.no), new)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(PUT)
            .bind(rows.keys().map(|key| key.0.0.to_vec()).collect::<Vec<_>>())
            .bind(rows.keys().map(|key| key.1.0).collect::<Vec<_>>())
            .bind(rows.keys().map(|key| i64::from(key.2)).collect::<Vec<_>>())
            .bind(rows.values().map(|new| &new.part.sealed[..]).collect::<Vec<_>>())
            .bind(rows.values().map(|new| new.whole).collect::<Vec<_>>());
        self.execute(query).await.map(drop)
    }

    pub(super) async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>> {
        let query = sqlx::query(PARTS).bind(&session.0[..]).bind(i64::from(limit));
        self.all(query).await?.iter().map(crate::store::sql::part).collect()
    }

    pub(super) async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        let query = sqlx::query(CLOSE).bind(id.0.to_vec()).bind(me.0).bind(epoch.0);
        Ok(self.optional(query).await?.is_some())
    }
}
