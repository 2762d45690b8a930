//! The database's own record of what happened to its rows, kept by triggers beside the
//! product's schema.

use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use super::checker::{Change, Table};

const SCHEMA: &str = r"
CREATE SCHEMA audit;
CREATE TABLE audit.change (
    n BIGSERIAL PRIMARY KEY, at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    tx XID8 NOT NULL DEFAULT pg_current_xact_id(), relation TEXT NOT NULL,
    before JSONB, after JSONB);
CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit.change (relation, before, after) VALUES (TG_TABLE_NAME,
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON session
    FOR EACH ROW EXECUTE FUNCTION audit.note();
CREATE TRIGGER audit AFTER INSERT OR DELETE ON member
    FOR EACH ROW EXECUTE FUNCTION audit.note();
CREATE TRIGGER audit_state AFTER UPDATE ON member
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION audit.note();
DO $$ BEGIN
    IF to_regclass('turn') IS NOT NULL THEN
        CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON turn
            FOR EACH ROW EXECUTE FUNCTION audit.note();
    END IF;
END $$;
";

/// An audit of one database.
pub struct Audit {
    url: String,
}

impl Audit {
    /// Begins to watch a migrated database.
    pub async fn install(url: &str) -> Self {
        let mut connection = PgConnection::connect(url).await.unwrap();
        connection.execute(SCHEMA).await.unwrap();
        connection.close().await.unwrap();
        Self { url: url.to_owned() }
    }

    /// The order of the next change.
    pub async fn mark(&self) -> i64 {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let query = "SELECT coalesce(max(n), 0) + 1 FROM audit.change";
        let mark = connection.fetch_one(query).await.unwrap().get(0);
        connection.close().await.unwrap();
        mark
    }

    /// Every change so far, in order.
    pub async fn changes(&self) -> Vec<Change> {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let query = "SELECT n, relation, before::text, after::text FROM audit.change ORDER BY n";
        let rows = connection.fetch_all(query).await.unwrap();
        connection.close().await.unwrap();
        let json = |text: Option<String>| {
            text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
        };
        let change = |row: sqlx::postgres::PgRow| Change {
            order: row.get(0),
            table: match row.get::<&str, _>(1) {
                "session" => Table::Session,
                "member" => Table::Member,
                _ => Table::Turn,
            },
            before: json(row.get(2)),
            after: json(row.get(3)),
        };
        rows.into_iter().map(change).collect()
    }
}
