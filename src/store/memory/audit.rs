//! Every change of a row, in the order of commits, for those who judge a simulation.

use std::collections::BTreeMap;

use serde_json::Value;

use super::table::Table;

/// A table that is audited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Audited {
    Session,
    Member,
    Turn,
}

/// One change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub table: Audited,
    /// Null for an insert.
    pub before: Value,
    /// Null for a deletion.
    pub after: Value,
}

/// Rows by table and key, as of the last look.
#[derive(Default)]
pub(super) struct Audit {
    rows: BTreeMap<(Audited, String), Value>,
    changes: Vec<Change>,
}

impl Audit {
    /// Notes what is different.
    pub(super) fn look(&mut self, table: &Table) {
        let rows = table.rows();
        for (key, after) in &rows {
            let before = self.rows.get(key).unwrap_or(&Value::Null);
            if before != after {
                let (before, after) = (before.clone(), after.clone());
                self.changes.push(Change { table: key.0, before, after });
            }
        }
        for (key, before) in &self.rows {
            if !rows.contains_key(key) {
                let (before, after) = (before.clone(), Value::Null);
                self.changes.push(Change { table: key.0, before, after });
            }
        }
        self.rows = rows;
    }

    pub(super) fn changes(&self) -> &[Change] {
        &self.changes
    }
}
