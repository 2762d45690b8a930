//! What one principal uses on all nodes, decided by the file's only writer.

use sqlx::SqliteConnection;

use super::{Sqlite, now_ms};
use crate::{
    ids::{Incarnation, Principal},
    store::{
        Claim, Result, TurnAdmission, TurnWish,
        sql::{from_micros, micros},
    },
};

const OTHERS: &str = "SELECT count(*) FROM (SELECT 1 FROM session s \
     JOIN member m ON m.incarnation = s.owner WHERE s.principal = ?1 AND s.id <> ?2 \
     AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING') LIMIT ?3)";

const RUNNING: &str = "SELECT COALESCE(SUM(s.turns), 0) FROM turn_share s \
     JOIN member m ON m.incarnation = s.incarnation WHERE s.principal = ?1 \
     AND s.incarnation <> ?2 AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING')";

const SHARE: &str = "INSERT INTO turn_share (principal, incarnation, turns) VALUES (?1, ?2, ?3) \
     ON CONFLICT (principal, incarnation) DO UPDATE SET turns = excluded.turns";

const NEXT: &str = "SELECT next_at FROM turn_pace WHERE principal = ?1";

const PACE: &str = "INSERT INTO turn_pace (principal, next_at) VALUES (?1, ?2) \
     ON CONFLICT (principal) DO UPDATE SET next_at = excluded.next_at";

/// Whether the principal has as many other sessions as it may.
pub(super) async fn is_full(connection: &mut SqliteConnection, claim: &Claim) -> Result<bool> {
    let Some(limit) = claim.limit.map(i64::from) else { return Ok(false) };
    let others: i64 = sqlx::query_scalar(OTHERS)
        .bind(&claim.principal.0[..])
        .bind(&claim.id.0[..])
        .bind(limit)
        .fetch_one(connection)
        .await?;
    Ok(others >= limit)
}

impl Sqlite {
    pub(super) async fn admit_turn(&self, wish: &TurnWish) -> Result<TurnAdmission> {
        let mut tx = self.write().await?;
        let principal = &wish.principal.0[..];
        if let Some(limit) = wish.at_once {
            let others: i64 = sqlx::query_scalar(RUNNING)
                .bind(principal)
                .bind(wish.me.0)
                .fetch_one(&mut *tx)
                .await?;
            if others.saturating_add(i64::from(wish.running)) > i64::from(limit) {
                return Ok(TurnAdmission::TooMany);
            }
        }
        if let Some(pace) = wish.pace {
            let now = now_ms().saturating_mul(1000);
            let next: Option<i64> =
                sqlx::query_scalar(NEXT).bind(principal).fetch_optional(&mut *tx).await?;
            let due = next.unwrap_or(now).max(now);
            let wait = (due - now).saturating_sub(micros(pace.tolerance()));
            if wait > 0 {
                return Ok(TurnAdmission::TooFast(from_micros(wait)));
            }
            let next = due.saturating_add(micros(pace.interval));
            sqlx::query(PACE).bind(principal).bind(next).execute(&mut *tx).await?;
        }
        if wish.at_once.is_some() {
            let query = sqlx::query(SHARE).bind(principal).bind(wish.me.0);
            query.bind(i64::from(wish.running)).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(TurnAdmission::Admitted)
    }

    pub(super) async fn keep_turns(
        &self,
        me: Incarnation,
        principal: Principal,
        running: u32,
    ) -> Result<()> {
        const KEEP: &str =
            "UPDATE turn_share SET turns = ?3 WHERE principal = ?1 AND incarnation = ?2";
        const NONE: &str =
            "DELETE FROM turn_share WHERE principal = ?1 AND incarnation = ?2 AND ?3 = 0";
        let mut tx = self.write().await?;
        let query = sqlx::query(if running == 0 { NONE } else { KEEP });
        let query = query.bind(principal.0.to_vec()).bind(me.0).bind(i64::from(running));
        query.execute(&mut *tx).await?;
        tx.commit().await
    }
}
