//! The command line. Settings of a node are not declared here: they come from
//! [`SETTINGS`], with their headings, variables and defaults.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand};

use crate::config::{
    ServeArgs,
    routes::RESPONSES,
    settings::{Key, Otherwise, SETTINGS, Section, Setting},
    url,
    value::{Kind, duration},
};

/// One binary, every command.
#[derive(Debug, Parser)]
#[command(
    name = "ringspan",
    version,
    about = "Session-bridge ring: one node owns each live upstream WebSocket, clients connect to any",
    long_about = "Session-bridge ring: exactly one node owns each live upstream WebSocket, and \
                  clients may connect to any node. Sessions survive disconnects, deploys and \
                  crashes of nodes.",
    after_long_help = "Examples:\n  \
        ringspan dev                              three nodes and a sample upstream on this machine\n  \
        ringspan dev --upstream wss://api.openai.com/v1/responses\n  \
        ringspan config check ringspan.toml       judge a configuration\n  \
        ringspan serve --config ringspan.toml     run one node\n  \
        ringspan ring                             look at the ring that is running\n\n\
        Exit status: 0 success, 1 failure, 64 bad usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: CliCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Run a ring on this machine: several nodes over one SQLite file
    #[command(after_long_help = "Examples:\n  ringspan dev\n  \
        ringspan dev --nodes 5 --upstream http://127.0.0.1:9000")]
    Dev(DevArgs),
    /// Run one node
    #[command(after_long_help = "Examples:\n  \
        ringspan serve --upstream wss://api.openai.com/v1/responses\n  \
        RINGSPAN_PEER_TOKEN=… ringspan serve --config ringspan.toml --peer-listen 10.0.0.5:50051\n\n\
        Every setting is also an environment variable and, but for --config and --upstream, a key \
        of the TOML file: a flag wins over the variable, the variable over the file.\n\n\
        Exit status: 0 after a clean drain, 1 after a failure, 64 for a bad configuration.")]
    Serve(ServeArgs),
    /// Run an upstream to try, test and measure with
    SampleUpstream(SampleUpstreamArgs),
    /// Look after the database's schema
    Migrate(MigrateArgs),
    /// Show the members of a running ring
    Ring(LookArgs),
    /// List sessions of a running ring
    Sessions(SessionsArgs),
    /// Watch a running ring in the terminal
    Top(TopArgs),
    /// Start a node's drain from outside
    Drain(DrainArgs),
    /// Validate, describe or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Describe the metrics
    #[command(subcommand)]
    Metrics(MetricsCommand),
    /// Send one round trip through a live ring; exit 0, or 1 with a reason
    Selfcheck(SelfcheckArgs),
    /// Print the completion script of a shell
    #[command(
        after_long_help = "Example:\n  ringspan completions bash > /etc/bash_completion.d/ringspan"
    )]
    Completions(CompletionsArgs),
    /// Print the manual page, or write one for each command
    #[command(after_long_help = "Example:\n  ringspan man --out /usr/local/share/man/man1")]
    Man(ManArgs),
}

/// `ringspan dev`
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Node processes to run
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Upstream of the Responses route; the sample upstream stays behind /rooms/{room} and /echo
    #[arg(long, value_name = "URL", value_parser = upstream_url)]
    pub upstream: Option<String>,
}

/// `ringspan sample-upstream`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = super::sample::HELP)]
pub struct SampleUpstreamArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    pub listen: std::net::SocketAddr,
    /// Refuse requests without a bearer token
    #[arg(long)]
    pub any_bearer: bool,
    /// Refuse requests without the bearer token that this variable holds
    #[arg(long, value_name = "VARIABLE", conflicts_with = "any_bearer")]
    pub bearer_env: Option<String>,
    /// Model to answer as when a request names none
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Age at which a Responses connection is ended
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub max_connection_age: Option<Duration>,
    /// End it also in mid-turn, with all its turns
    #[arg(long, requires = "max_connection_age")]
    pub cut_at_age: bool,
}

/// `ringspan migrate`
#[derive(Clone, Debug, Args)]
pub struct MigrateArgs {
    #[command(subcommand)]
    pub command: MigrateCommand,
}

/// What to do about the schema.
#[derive(Clone, Debug, Subcommand)]
pub enum MigrateCommand {
    /// Bring the schema up to date, under a lock
    Run(DatabaseArgs),
    /// Say which version the schema has; exit 1 if this build needs another
    Check(DatabaseArgs),
    /// Block until the schema is there
    Wait {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Give up after so long
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
        timeout: Duration,
    },
}

/// How to reach a running ring.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// Admin listener of any node; for `drain`, of the node that is to drain
    #[arg(
        long,
        value_name = "URL",
        env = "RINGSPAN_ADMIN_URL",
        default_value = "http://127.0.0.1:9090",
        value_parser = admin_url
    )]
    pub admin_url: http::Uri,
}

/// `ringspan ring`
#[derive(Clone, Debug, Args)]
pub struct LookArgs {
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `ringspan sessions`
#[derive(Clone, Debug, Args)]
pub struct SessionsArgs {
    #[command(flatten)]
    pub look: LookArgs,
    /// Only sessions of this key
    #[arg(long, value_name = "K")]
    pub key: Option<String>,
    /// Only sessions of this owner
    #[arg(long, value_name = "NODE")]
    pub owner: Option<String>,
    /// Only sessions after this id, in the order of ids
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
    /// Most sessions to list
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = session_limit)]
    pub limit: usize,
}

/// `ringspan top`
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    pub look: LookArgs,
    /// Time between two looks
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub interval: Duration,
}

/// `ringspan drain`
#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    pub look: LookArgs,
    /// Node id
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Limit of the whole drain from now on; it only ever makes one shorter
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub within: Option<Duration>,
    /// Drain also if no node would be left to own sessions
    #[arg(long)]
    pub force: bool,
    /// File of the admin token; the variable `RINGSPAN_ADMIN_TOKEN` holds the token itself
    #[arg(long, value_name = "FILE", env = "RINGSPAN_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<std::path::PathBuf>,
}

/// `ringspan config`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Judge a file in the present environment: "ok", or every fault and exit status 64
    Check {
        #[arg(value_name = "FILE")]
        file: String,
    },
    /// Print the JSON Schema of the file
    Schema,
    /// Print the effective configuration as TOML, without secrets; an upstream need not be given
    Dump(ServeArgs),
    /// Print the reference of all settings as Markdown
    #[command(hide = true)]
    Reference,
}

/// `ringspan metrics`
#[derive(Clone, Debug, Subcommand)]
pub enum MetricsCommand {
    /// Print every metric with type, unit and help
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// `ringspan selfcheck`
#[derive(Clone, Debug, Args)]
#[command(
    after_long_help = "Attaches to a session of its own and has one message answered: a turn \
        without generation on a Responses route, an echoed text on any other. With --admin-url of \
        the node behind --url it looks for a session that another node owns, so that the message \
        is forwarded; in a ring of one node that cannot be and is not asked for.\n\n\
        Examples:\n  ringspan selfcheck --url http://127.0.0.1:8080 --admin-url http://127.0.0.1:9090\n  \
        ringspan selfcheck --url https://ring.example.com --bearer-env OPENAI_API_KEY\n  \
        ringspan selfcheck --url http://127.0.0.1:8080 --route '/rooms/{room}'"
)]
pub struct SelfcheckArgs {
    /// Client listener of any node
    #[arg(long, value_name = "URL", value_parser = admin_url)]
    pub url: http::Uri,
    /// Admin listener of the same node: names the owner and proves that a message was forwarded
    #[arg(long, value_name = "URL", env = "RINGSPAN_ADMIN_URL", value_parser = admin_url)]
    pub admin_url: Option<http::Uri>,
    /// Route as the configuration has it; a {name} in it becomes a fresh one
    #[arg(long, value_name = "PATH", default_value = RESPONSES, value_parser = route_path)]
    pub route: String,
    /// Show the bearer token that this variable holds
    #[arg(long, value_name = "VARIABLE")]
    pub bearer_env: Option<String>,
    /// Model that a turn names
    #[arg(long, value_name = "NAME", default_value = "gpt-5.5")]
    pub model: String,
    /// Give up after so long
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `ringspan completions`
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// Shell that is to complete
    pub shell: clap_complete::Shell,
}

/// `ringspan man`
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Directory for a page of each command, in the place of one on stdout
    #[arg(long, value_name = "DIRECTORY")]
    pub out: Option<std::path::PathBuf>,
}

/// Settings that `migrate` reads: the database's, and the file.
#[derive(Clone, Debug, Default)]
pub struct DatabaseArgs(pub ServeArgs);

fn parse_duration(text: &str) -> Result<Duration, String> {
    let positive = duration(text).filter(|duration| !duration.is_zero());
    positive.ok_or_else(|| "expected a duration such as \"15s\", \"500ms\" or \"2m\"".into())
}

fn session_limit(text: &str) -> Result<usize, String> {
    // A million rows are what a terminal, and the memory for their table, still bear.
    let limit = text.parse().ok().filter(|limit| (1..=1_000_000).contains(limit));
    limit.ok_or_else(|| "expected a number from 1 to 1000000".into())
}

fn route_path(text: &str) -> Result<String, String> {
    let sound = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if sound {
        Ok(text.to_owned())
    } else {
        Err("expected a path such as \"/rooms/{room}\"".into())
    }
}

fn admin_url(text: &str) -> Result<http::Uri, String> {
    url::http(text).map_err(|expected| format!("expected {expected}"))
}

fn upstream_url(text: &str) -> Result<String, String> {
    url::upstream(text).map_err(|expected| format!("expected {expected}"))?;
    Ok(text.to_owned())
}

fn database_settings() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(|s| s.key == Key::Config || s.section == Section::Database)
}

fn flag(setting: &'static Setting) -> Arg {
    let default = match setting.otherwise {
        Otherwise::Text(text) => format!(" [default: {text}]"),
        Otherwise::Computed(words) => format!(" [default: {words}]"),
        Otherwise::Unset => String::new(),
    };
    let help = setting.help.trim_end_matches('.');
    let arg = Arg::new(setting.name)
        .long(setting.name)
        .help_heading(setting.section.title())
        .help(format!("{help} [env: {}]{default}", setting.env()))
        .value_name(placeholder(setting.kind))
        .action(ArgAction::Set);
    match setting.kind {
        // A word may follow after a blank too: no command that takes settings has operands.
        Kind::Switch => arg.num_args(0..=1).default_missing_value("true"),
        _ => arg,
    }
}

fn placeholder(kind: Kind) -> &'static str {
    match kind {
        Kind::Text | Kind::Sha256 => "TEXT",
        Kind::Name => "NAME",
        Kind::Address => "ADDR",
        Kind::HostPort => "HOST:PORT",
        Kind::Duration { .. } => "DURATION",
        Kind::Size { .. } => "SIZE",
        Kind::Count { .. } => "N",
        Kind::Switch => "BOOL",
        Kind::Choice(_) | Kind::AuthMode => "WORD",
        Kind::Path => "FILE",
        Kind::Members => "ID=HOST:PORT,…",
        Kind::Words(_) => "WORD,…",
        Kind::Origins => "ORIGIN,…",
        Kind::UpstreamUrl | Kind::HttpUrl | Kind::DatabaseUrl | Kind::PostgresUrl => "URL",
        Kind::Filter => "FILTER",
        Kind::Secret | Kind::HistoryKeys => "SECRET",
    }
}

fn collect(settings: impl Iterator<Item = &'static Setting>, matches: &ArgMatches) -> ServeArgs {
    settings.fold(ServeArgs::default(), |args, setting| {
        match matches.get_one::<String>(setting.name) {
            Some(text) => args.with(setting.key, text),
            None => args,
        }
    })
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(collect(SETTINGS.iter(), matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        command.args(SETTINGS.iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DatabaseArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(collect(database_settings(), matches)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for DatabaseArgs {
    fn augment_args(command: Command) -> Command {
        command.args(database_settings().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
