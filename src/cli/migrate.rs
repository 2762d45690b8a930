//! `ringspan migrate run | check | wait`.

use std::io::{self, Write as _};

use super::{
    Exit,
    args::{DatabaseArgs, MigrateCommand},
    complain, env,
};
use crate::{
    config::load::load_store,
    store::{
        StoreOptions,
        schema::{self, Progress, SchemaState, SchemaStatus},
    },
};

/// Runs one command; what happens is said on stdout as it happens.
pub(super) async fn run(command: MigrateCommand) -> anyhow::Result<Exit> {
    let (MigrateCommand::Run(DatabaseArgs(args))
    | MigrateCommand::Check(DatabaseArgs(args))
    | MigrateCommand::Wait { database: DatabaseArgs(args), .. }) = &command;
    let options = match load_store(args, &env) {
        Ok(options) => options,
        Err(faults) => {
            complain(format_args!("{faults}"));
            return Ok(Exit::Usage);
        }
    };
    match command {
        MigrateCommand::Run(_) => migrate(&options).await,
        MigrateCommand::Check(_) => check(&options).await,
        MigrateCommand::Wait { timeout, .. } => {
            let report = |reason: &_| complain(format_args!("waiting: {reason}"));
            let status = schema::wait(&options, timeout, report).await?;
            writeln!(io::stdout(), "{}", describe(status))?;
            Ok(Exit::Success)
        }
    }
}

async fn migrate(options: &StoreOptions) -> anyhow::Result<Exit> {
    let applied = schema::migrate(options, |progress| {
        // A reader that left does not stop a migration.
        let _ = match progress {
            Progress::WaitingForLock => writeln!(io::stdout(), "waiting for another migration"),
            Progress::Applying(step) => {
                writeln!(io::stdout(), "applying {} ({})", step.version, step.name)
            }
            Progress::Postponed(step) => writeln!(
                io::stdout(),
                "waiting with {} ({}) for what others do with its tables",
                step.version,
                step.name
            ),
            Progress::Applied(step) => {
                writeln!(io::stdout(), "applied {} ({})", step.version, step.name)
            }
        };
    })
    .await?;
    let status = schema::check(options).await?;
    let nothing = if applied.is_empty() { ", nothing to do" } else { "" };
    writeln!(io::stdout(), "{}{nothing}", describe(status))?;
    Ok(Exit::Success)
}

async fn check(options: &StoreOptions) -> anyhow::Result<Exit> {
    let status = schema::check(options).await?;
    writeln!(io::stdout(), "{}", describe(status))?;
    status.usable()?;
    Ok(Exit::Success)
}

fn describe(SchemaStatus { found, wanted, state }: SchemaStatus) -> String {
    match state {
        SchemaState::Missing => "the database has no schema".to_owned(),
        SchemaState::Current => format!("schema version {found} is current"),
        SchemaState::OneAhead => {
            format!(
                "schema version {found} is of the next release; this build ({wanted}) can use it"
            )
        }
        SchemaState::Behind => format!("schema version {found} is behind this build's {wanted}"),
        SchemaState::TooNew => format!("schema version {found} is ahead of this build's {wanted}"),
    }
}
