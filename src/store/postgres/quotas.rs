//! What one principal uses on all nodes. Everything that counts is decided under the
//! principal's advisory lock, in a statement of its own after it: only then does the count see
//! what was committed before. Nobody without limits comes here.

use sqlx::{
    PgConnection, Postgres as Db, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout_at;

use super::Postgres;
use crate::{
    ids::{Incarnation, Principal},
    store::{
        Claim, Result, StoreError, TurnAdmission, TurnWish,
        sql::{from_micros, micros},
    },
};

const OTHERS: &str = "SELECT count(*) FROM (SELECT 1 FROM session s \
     JOIN member m ON m.incarnation = s.owner WHERE s.principal = $1 AND s.id <> $2 \
     AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING') LIMIT $3) AS other";

/// `$1` principal, `$2` node, `$3` turns there, `$4` limit or NULL; `$5` interval or NULL and
/// `$6` tolerance in microseconds.
const ADMIT: &str = "WITH held AS MATERIALIZED (SELECT COALESCE(sum(s.turns), 0) AS others \
     FROM turn_share s JOIN member m ON m.incarnation = s.incarnation \
     WHERE s.principal = $1 AND s.incarnation <> $2 \
     AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING')), \
     time AS MATERIALIZED (SELECT clock_timestamp() AS now), \
     due AS MATERIALIZED (SELECT now, GREATEST(now, COALESCE((SELECT next_at FROM turn_pace \
     WHERE principal = $1), now)) AS at FROM time), \
     verdict AS MATERIALIZED (SELECT $4::bigint IS NULL OR others + $3::bigint <= $4 AS room, \
     CASE WHEN $5::bigint IS NULL THEN 0 ELSE \
     (extract(epoch FROM at - now) * 1000000)::bigint - $6::bigint END AS wait, at \
     FROM held, due), \
     share AS (INSERT INTO turn_share (principal, incarnation, turns) \
     SELECT $1, $2, $3 FROM verdict WHERE room AND wait <= 0 AND $4 IS NOT NULL \
     ON CONFLICT (principal, incarnation) DO UPDATE SET turns = excluded.turns), \
     pace AS (INSERT INTO turn_pace (principal, next_at) \
     SELECT $1, at + $5 * interval '1 microsecond' FROM verdict \
     WHERE room AND wait <= 0 AND $5 IS NOT NULL \
     ON CONFLICT (principal) DO UPDATE SET next_at = excluded.next_at) \
     SELECT room, wait FROM verdict";

/// Lets wishes of one principal pass one at a time, until the transaction ends.
async fn lock(connection: &mut PgConnection, principal: Principal) -> Result<(), sqlx::Error> {
    const LOCK: &str = "SELECT pg_advisory_xact_lock($1, $2)";
    /// "quot" as a number, apart from other advisory locks.
    const SPACE: i32 = i32::from_be_bytes(*b"quot");
    let [a, b, c, d, ..] = principal.0;
    // Principals of one number only wait for each other.
    let query = sqlx::query(LOCK).bind(SPACE).bind(i32::from_be_bytes([a, b, c, d]));
    query.execute(connection).await.map(|_| ())
}

impl Postgres {
    /// Runs a claim if the principal has room for it. The row if it was won, and whether
    /// there was no room.
    pub(super) async fn claim_within(
        &self,
        claim: &Claim,
        limit: u32,
        query: Query<'_, Db, PgArguments>,
    ) -> Result<(Option<PgRow>, bool)> {
        let mut connection = self.checkout().await?;
        let deadline = connection.deadline;
        let work = async {
            let mut tx = connection.transaction().await?;
            lock(&mut tx, claim.principal).await?;
            let others: i64 = sqlx::query_scalar(OTHERS)
                .bind(&claim.principal.0[..])
                .bind(&claim.id.0[..])
                .bind(i64::from(limit))
                .fetch_one(&mut *tx)
                .await?;
            let full = others >= i64::from(limit);
            let won = if full { None } else { query.fetch_optional(&mut *tx).await? };
            tx.commit().await?;
            Ok((won, full))
        };
        let outcome = timeout_at(deadline, work).await;
        connection.settle(outcome)
    }

    pub(super) async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission> {
        let mut connection = self.checkout().await?;
        let deadline = connection.deadline;
        let work = async {
            let mut tx = connection.transaction().await?;
            lock(&mut tx, wish.principal).await?;
            let row = sqlx::query(ADMIT)
                .bind(&wish.principal.0[..])
                .bind(wish.me.0)
                .bind(i64::from(wish.running))
                .bind(wish.at_once.map(i64::from))
                .bind(wish.pace.map(|pace| micros(pace.interval)))
                .bind(wish.pace.map(|pace| micros(pace.tolerance())))
                .fetch_one(&mut *tx)
                .await?;
            tx.commit().await?;
            Ok(row)
        };
        let outcome = timeout_at(deadline, work).await;
        let row = connection.settle(outcome)?;
        let wait: i64 = row.try_get("wait")?;
        Ok(match row.try_get("room")? {
            false => TurnAdmission::TooMany,
            true if wait > 0 => TurnAdmission::TooFast(from_micros(wait)),
            true => TurnAdmission::Admitted,
        })
    }

    pub(super) async fn keep_turns(
        &self,
        me: Incarnation,
        principal: Principal,
        running: u32,
    ) -> Result<(), StoreError> {
        // Fewer than before: nothing that is decided meanwhile can become wrong by it.
        const KEEP: &str =
            "UPDATE turn_share SET turns = $3 WHERE principal = $1 AND incarnation = $2";
        const NONE: &str = "DELETE FROM turn_share WHERE principal = $1 AND incarnation = $2";
        let query = sqlx::query(if running == 0 { NONE } else { KEEP });
        let query = query.bind(principal.0.to_vec()).bind(me.0);
        let query = if running == 0 { query } else { query.bind(i64::from(running)) };
        self.execute(query).await.map(|_| ())
    }
}
