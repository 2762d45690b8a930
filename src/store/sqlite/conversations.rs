//! Sealed parts of conversations.

use super::{Sqlite, now_ms};
use crate::{
    ids::{Epoch, Incarnation, SessionId},
    store::{NewPart, Part, Result, sql::part},
};

/// What comes after a session's end would otherwise outlive it.
const OWNED: &str = "SELECT EXISTS (SELECT 1 FROM session WHERE id = ?1 AND owner IS NOT NULL)";

const PUT: &str = "INSERT INTO conversation (session, epoch, part_no, sealed, updated_at) \
     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (session, epoch, part_no) DO NOTHING";

/// Never what a later owner wrote.
const REPLACE: &str = "DELETE FROM conversation WHERE session = ?1 \
     AND (epoch, part_no) < (?2, ?3)";

const PARTS: &str = "SELECT epoch, part_no, sealed FROM conversation WHERE session = ?1 \
     ORDER BY epoch, part_no LIMIT ?2";

const CLOSE: &str = "UPDATE session SET owner = NULL, state = 'CLOSED', updated_at = ?4 \
     WHERE id = ?1 AND owner = ?2 AND epoch = ?3";

impl Sqlite {
    pub(super) async fn put_parts(&self, parts: &[NewPart]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let mut tx = self.write().await?;
        let now = now_ms();
        for NewPart { session, part, whole } in parts {
            let owned: bool =
                sqlx::query_scalar(OWNED).bind(&session.0[..]).fetch_one(&mut *tx).await?;
            if !owned {
                continue;
            }
            let at =
                |sql| sqlx::query(sql).bind(session.0.to_vec()).bind(part.epoch.0).bind(part.no);
            if *whole {
                at(REPLACE).execute(&mut *tx).await?;
            }
            at(PUT).bind(&part.sealed[..]).bind(now).execute(&mut *tx).await?;
        }
        tx.commit().await
    }

    pub(super) async fn parts_of(&self, session: SessionId, limit: u32) -> Result<Vec<Part>> {
        let query = sqlx::query(PARTS).bind(&session.0[..]).bind(i64::from(limit));
        self.all(query).await?.iter().map(part).collect()
    }

    pub(super) async fn close(&self, id: SessionId, me: Incarnation, epoch: Epoch) -> Result<bool> {
        let mut tx = self.write().await?;
        let closed = sqlx::query(CLOSE)
            .bind(&id.0[..])
            .bind(me.0)
            .bind(epoch.0)
            .bind(now_ms())
            .execute(&mut *tx)
            .await?;
        if closed.rows_affected() == 0 {
            return Ok(false);
        }
        let forget = "DELETE FROM conversation WHERE session = ?1";
        sqlx::query(forget).bind(&id.0[..]).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(true)
    }
}
