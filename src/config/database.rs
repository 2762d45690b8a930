//! Where the database is, as settings or files of secrets say.

use super::{
    fault::Faults,
    mounted,
    resolve::Resolved,
    settings::Key,
    url::{has_password, with_password},
};

/// Addresses of the database. They may hold a password, so this is not `Debug`.
pub(super) struct Database {
    pub url: String,
    pub direct_url: Option<String>,
}

impl Database {
    /// Whether it is a file of this machine.
    pub fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite:")
    }
}

/// The addresses that hold, with the password of a file in them.
pub(super) fn read(settings: &Resolved, faults: &mut Faults) -> Database {
    let main = [Key::DatabaseUrl, Key::DatabaseUrlFile];
    let direct = [Key::DatabaseDirectUrl, Key::DatabaseDirectUrlFile];
    let mut address = |keys: [Key; 2]| {
        let kind = keys[0].setting().kind;
        let read = |text: &str| kind.read(text).ok().map(|_| text.to_owned());
        mounted::either(settings, keys, read, &kind.expected(), faults)
    };
    let (url, direct_url) = (address(main).unwrap_or_default(), address(direct));
    let mut database = Database { url, direct_url };
    if database.is_sqlite() && database.direct_url.is_some() {
        let expected = "nothing, since database-url is SQLite, which has no pooler to bypass";
        settings.fault(given(settings, direct), expected, faults);
    }
    password(&mut database, settings, faults);
    database
}

/// Puts the password of its own file into addresses that name none.
fn password(database: &mut Database, settings: &Resolved, faults: &mut Faults) {
    let file = Key::DatabasePasswordFile;
    let read = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let password = mounted::in_file(settings, file, read, "a password", faults);
    let Some(password) = password else { return };
    if database.is_sqlite() {
        settings.fault(file, "nothing, since database-url is SQLite, which has none", faults);
        return;
    }
    for url in [Some(&mut database.url), database.direct_url.as_mut()].into_iter().flatten() {
        if has_password(url) {
            let expected = "nothing, since the database's address holds a password already";
            settings.fault(file, expected, faults);
            return;
        }
        *url = with_password(url, &password);
    }
}

fn given(settings: &Resolved, keys: [Key; 2]) -> Key {
    keys.into_iter().find(|key| settings.given(*key).text.is_some()).unwrap_or(keys[0])
}
