//! What goes when nobody needs it any more. Each step is a write transaction of its own: others
//! write between two.

use std::time::Duration;

use sqlx::Row as _;

use super::{Sqlite, members::millis, now_ms};
use crate::store::{Cursor, Result, Sweep, Swept, sql::bytes16};

/// The rows of a window: at most `?2` that are older than `?1`, after the cursor (`?3`, `?4`).
macro_rules! window {
    ($columns:literal, $table:literal, $tiebreak:literal) => {
        concat!(
            "(SELECT ",
            $columns,
            " FROM ",
            $table,
            " WHERE updated_at <= ?1 AND (updated_at, ",
            $tiebreak,
            ") > (?3, ?4) ORDER BY updated_at, ",
            $tiebreak,
            " LIMIT ?2)"
        )
    };
}

/// The last row of a full window.
macro_rules! last {
    ($table:literal, $tiebreak:literal) => {
        concat!(
            "SELECT updated_at, ",
            $tiebreak,
            " FROM ",
            window!("*", $table, $tiebreak),
            " LIMIT 1 OFFSET ?2 - 1"
        )
    };
}

const ALIASES: &str = concat!(
    "DELETE FROM alias WHERE (principal, kind, digest) IN (SELECT principal, kind, digest FROM ",
    window!("principal, kind, digest, session", "alias", "digest"),
    " a WHERE NOT EXISTS (SELECT 1 FROM session s WHERE s.id = a.session AND s.owner IS NOT NULL) \
     AND NOT EXISTS (SELECT 1 FROM turn k WHERE k.session = a.session AND k.idem_key IS NOT NULL))"
);

const CONVERSATIONS: &str = concat!(
    "DELETE FROM conversation WHERE (session, epoch, part_no) IN \
     (SELECT session, epoch, part_no FROM ",
    window!("session, epoch, part_no", "conversation", "session"),
    " c WHERE NOT EXISTS (SELECT 1 FROM session s JOIN member m ON m.incarnation = s.owner \
     WHERE s.id = c.session AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING')))"
);

const SESSIONS: &str = "DELETE FROM session WHERE id IN (SELECT id FROM session \
     WHERE state = 'CLOSED' AND updated_at <= ?1 ORDER BY updated_at LIMIT ?2)";

const MEMBERS: &str = "DELETE FROM member WHERE incarnation IN (SELECT incarnation FROM member m \
     WHERE state IN ('DEAD', 'GONE') AND ended_at <= ?1 \
     AND NOT EXISTS (SELECT 1 FROM session s WHERE s.owner = m.incarnation) \
     ORDER BY ended_at LIMIT ?2)";

const SHARES: &str = "DELETE FROM turn_share WHERE (principal, incarnation) IN \
     (SELECT principal, incarnation FROM turn_share s WHERE ?1 IS NOT NULL AND NOT EXISTS \
     (SELECT 1 FROM member m WHERE m.incarnation = s.incarnation \
     AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING')) LIMIT ?2)";

const PACES: &str = "DELETE FROM turn_pace WHERE principal IN \
     (SELECT principal FROM turn_pace WHERE next_at <= ?1 * 1000 ORDER BY next_at LIMIT ?2)";

/// Sessions of the dead that nobody came for; `?3` is the time.
const ORPHANS: &str = "UPDATE session SET owner = NULL, state = 'CLOSED', updated_at = ?3 \
     WHERE id IN (SELECT s.id FROM member m JOIN session s ON s.owner = m.incarnation \
     WHERE m.state IN ('DEAD', 'GONE') AND m.ended_at <= ?1 LIMIT ?2)";

const TURNS: &str = "DELETE FROM turn WHERE (session, epoch, turn_no) IN \
     (SELECT session, epoch, turn_no FROM turn WHERE begun_at <= ?1 ORDER BY begun_at LIMIT ?2)";

impl Sqlite {
    pub(super) async fn sweep(
        &self,
        what: Sweep,
        age: Duration,
        limit: u32,
        from: Cursor,
    ) -> Result<Swept> {
        const LAST_ALIAS: &str = last!("alias", "digest");
        const LAST_PART: &str = last!("conversation", "session");
        let now = now_ms();
        let (before, rows) = (now.saturating_sub(millis(age)), i64::from(limit.max(1)));
        let (sql, last) = match what {
            Sweep::Sessions => (SESSIONS, None),
            Sweep::Aliases => (ALIASES, Some(LAST_ALIAS)),
            Sweep::Members => (MEMBERS, None),
            Sweep::Conversations => (CONVERSATIONS, Some(LAST_PART)),
            Sweep::Shares => (SHARES, None),
            Sweep::Paces => (PACES, None),
            Sweep::Orphans => (ORPHANS, None),
            Sweep::Turns => (TURNS, None),
        };
        let query = sqlx::query(sql).bind(before).bind(rows);
        let Some(last) = last else {
            let query = if what == Sweep::Orphans { query.bind(now) } else { query };
            return Ok(Swept::of(self.execute(query).await?, limit));
        };
        let mut tx = self.write().await?;
        let bound = sqlx::query(last).bind(before).bind(rows).bind(from.since).bind(&from.key[..]);
        let next = match bound.fetch_optional(&mut *tx).await? {
            Some(row) => {
                let key = bytes16(&row.try_get::<Vec<u8>, _>(1)?, "swept key")?;
                Some(Cursor { since: row.try_get(0)?, key })
            }
            None => None,
        };
        let done = query.bind(from.since).bind(&from.key[..]).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(Swept { rows: done.rows_affected(), next })
    }
}
