//! What goes when nobody needs it any more.
//!
//! A statement reads an index from its oldest entry on, as far as its limit and no further. The
//! time is asked for in a sub-select, once: `clock_timestamp()` changes while a statement runs, so
//! no index could be searched for it, and a sweep that finds nothing would read the whole table.

use std::time::Duration;

use sqlx::Row as _;

use super::Postgres;
use crate::store::{
    Cursor, Result, Sweep, Swept,
    sql::{bytes16, micros},
};

/// What is old enough: `$1` is the age.
macro_rules! old {
    () => {
        "(SELECT clock_timestamp() - $1 * interval '1 microsecond')"
    };
}

/// A statement over a window of `$2` rows after the cursor (`$3`, `$4`), most of which may have to
/// stay. Whether one is of use is asked by a count, row by row: the planner would make a join with
/// the whole of the other table of anything else.
macro_rules! window {
    ($table:literal, $key:literal, $tiebreak:literal, $uses:literal) => {
        concat!(
            "WITH seen AS MATERIALIZED (SELECT ",
            $key,
            ", updated_at FROM ",
            $table,
            " WHERE (updated_at, ",
            $tiebreak,
            ") > (timestamptz 'epoch' + $3 * interval '1 microsecond', $4) AND updated_at <= ",
            old!(),
            " ORDER BY updated_at, ",
            $tiebreak,
            " LIMIT $2), useless AS (SELECT ",
            $key,
            " FROM ",
            $table,
            " t JOIN seen USING (",
            $key,
            ") WHERE t.updated_at = seen.updated_at AND ",
            $uses,
            " = 0 FOR UPDATE OF t SKIP LOCKED), gone AS (DELETE FROM ",
            $table,
            " WHERE (",
            $key,
            ") IN (SELECT * FROM useless) RETURNING 1) \
             SELECT (SELECT count(*) FROM gone) AS gone, last.since, last.key \
             FROM (VALUES (1)) AS one LEFT JOIN \
             (SELECT (extract(epoch FROM updated_at) * 1000000)::bigint AS since, ",
            $tiebreak,
            " AS key FROM seen ORDER BY updated_at, ",
            $tiebreak,
            " OFFSET $2 - 1 LIMIT 1) AS last ON true"
        )
    };
}

const ALIASES: &str = window!(
    "alias",
    "principal, kind, digest",
    "digest",
    "(SELECT count(*) FROM session s WHERE s.id = t.session AND s.owner IS NOT NULL) = 0 \
     AND (SELECT count(*) FROM (SELECT 1 FROM turn k WHERE k.session = t.session \
     AND k.idem_key IS NOT NULL LIMIT 1) AS named)"
);

const CONVERSATIONS: &str = window!(
    "conversation",
    "session, epoch, part_no",
    "session",
    "(SELECT count(*) FROM session s JOIN member m ON m.incarnation = s.owner \
     WHERE s.id = t.session AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING'))"
);

const SESSIONS: &str = concat!(
    "DELETE FROM session WHERE id IN (SELECT id FROM session WHERE state = 'CLOSED' \
     AND updated_at <= ",
    old!(),
    " ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
);

const MEMBERS: &str = concat!(
    "DELETE FROM member WHERE incarnation IN (SELECT incarnation FROM member m \
     WHERE state IN ('DEAD', 'GONE') AND ended_at <= ",
    old!(),
    " AND NOT EXISTS (SELECT 1 FROM session s WHERE s.owner = m.incarnation) \
     ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
);

const SHARES: &str = "DELETE FROM turn_share WHERE (principal, incarnation) IN \
     (SELECT principal, incarnation FROM turn_share s WHERE $1::bigint >= 0 AND NOT EXISTS \
     (SELECT 1 FROM member m WHERE m.incarnation = s.incarnation \
     AND m.state IN ('JOINING', 'ACTIVE', 'DRAINING')) LIMIT $2 FOR UPDATE SKIP LOCKED)";

const PACES: &str = concat!(
    "DELETE FROM turn_pace WHERE principal IN (SELECT principal FROM turn_pace WHERE next_at <= ",
    old!(),
    " ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
);

/// From the few that are dead to their rows, by the index: most sweeps find none.
const ORPHANS: &str = concat!(
    "UPDATE session SET owner = NULL, state = 'CLOSED', \
     updated_at = clock_timestamp() WHERE id IN (SELECT s.id FROM member m CROSS JOIN LATERAL \
     (SELECT id FROM session WHERE owner = m.incarnation ORDER BY id LIMIT $2 \
     FOR UPDATE SKIP LOCKED) s WHERE m.state IN ('DEAD', 'GONE') AND m.ended_at <= ",
    old!(),
    " LIMIT $2)"
);

const TURNS: &str = concat!(
    "DELETE FROM turn WHERE (session, epoch, turn_no) IN \
     (SELECT session, epoch, turn_no FROM turn WHERE begun_at <= ",
    old!(),
    " ORDER BY begun_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
);

impl Postgres {
    pub(super) async fn sweep(
        &self,
        what: Sweep,
        age: Duration,
        limit: u32,
        from: Cursor,
    ) -> Result<Swept> {
        let (sql, in_windows) = match what {
            Sweep::Sessions => (SESSIONS, false),
            Sweep::Aliases => (ALIASES, true),
            Sweep::Members => (MEMBERS, false),
            Sweep::Conversations => (CONVERSATIONS, true),
            Sweep::Shares => (SHARES, false),
            Sweep::Paces => (PACES, false),
            Sweep::Orphans => (ORPHANS, false),
            Sweep::Turns => (TURNS, false),
        };
        // Planned each time for its limit: a plan for any limit reads whole tables.
        let query =
            sqlx::query(sql).persistent(false).bind(micros(age)).bind(i64::from(limit.max(1)));
        if !in_windows {
            return Ok(Swept::of(self.execute(query).await?, limit));
        }
        let query = query.bind(from.since).bind(from.key.to_vec());
        let row = self.optional(query).await?.ok_or_else(super::no_meta)?;
        let next = match row.try_get::<Option<i64>, _>("since")? {
            Some(since) => {
                let key = bytes16(&row.try_get::<Vec<u8>, _>("key")?, "swept key")?;
                Some(Cursor { since, key })
            }
            None => None,
        };
        let rows: i64 = row.try_get("gone")?;
        Ok(Swept { rows: u64::try_from(rows).unwrap_or(0), next })
    }
}
