//! From flags, variables and file to one validated [`Config`], or to all its faults.

use std::{path::PathBuf, time::Duration};

use super::{
    BreakerRules, Collectors, Config, Limits, LogFormat, Node, PrincipalLimits, Rebalance,
    Telemetry, Timing, admin, auth, check, continuity,
    database::{self, Database},
    fault::{Faults, Got},
    file::File,
    otlp, peers,
    resolve::{Env, Resolved, ServeArgs},
    routes,
    settings::{Key, Section},
    value::duration_text,
};
use crate::store::StoreOptions;

/// Margin below which the renewal of a lease cannot be expected to arrive in time.
const LEASE_MARGIN_MIN: Duration = Duration::from_millis(250);

/// A configuration with the text of its settings, from which it can be dumped.
pub struct Loaded {
    pub config: Config,
    pub(super) settings: Resolved,
    pub(super) file: File,
}

impl Config {
    /// Reads and judges everything that `serve` needs. Reads the configuration file and
    /// the files of secrets; binds and connects nothing.
    ///
    /// # Errors
    /// All faults at once; none shows a secret.
    pub fn load(args: &ServeArgs, env: Env<'_>) -> Result<Self, Faults> {
        load(args, env).map(|loaded| loaded.config)
    }
}

/// As [`Config::load`], keeping what a dump needs.
///
/// # Errors
/// All faults at once; none shows a secret.
pub fn load(args: &ServeArgs, env: Env<'_>) -> Result<Loaded, Faults> {
    let mut faults = Faults::default();
    let file = read_file(args, env, &mut faults);
    judge(file, args, env, faults)
}

/// As [`load`] for somebody who only looks: that nothing is to be served comes beside the
/// configuration, so that a first look at the defaults needs no upstream.
///
/// # Errors
/// All faults at once, if there is another one.
pub fn load_to_show(args: &ServeArgs, env: Env<'_>) -> Result<(Loaded, Faults), Faults> {
    let mut faults = Faults::default();
    let file = read_file(args, env, &mut faults);
    survey(file, args, env, faults)
}

/// [`load`] with a file that was read, and its faults.
pub(super) fn judge(
    file: File,
    args: &ServeArgs,
    env: Env<'_>,
    faults: Faults,
) -> Result<Loaded, Faults> {
    let (loaded, idle) = survey(file, args, env, faults)?;
    idle.or(loaded)
}

/// The configuration, and whether nothing is to be served by it.
fn survey(
    file: File,
    args: &ServeArgs,
    env: Env<'_>,
    mut faults: Faults,
) -> Result<(Loaded, Faults), Faults> {
    let mut settings = Resolved::new(|_| true, args, env, &file, &mut faults);
    fill(&mut settings, env, &mut faults);
    let database = database::read(&settings, &mut faults);
    let mut warnings = Vec::new();
    let found = routes::build(&settings, &file, env, &mut faults, &mut warnings);
    let mut idle = Faults::default();
    routes::judge_idle(&settings, &file, &found, &mut idle);
    let auth = auth::build(&settings, &file, &mut faults);
    let peer = peers::security(&settings, &mut faults);
    let admin_token = admin::token(&settings, &mut faults);
    let history_keys = continuity::keys(&settings, &mut faults);
    let otlp = otlp::collectors(&settings, env, &mut faults);
    check::relations(&settings, &mut faults);
    check::warn(&settings, &database, &found.upstreams, &auth, &mut warnings);
    let config = Config {
        node: node(&settings, env),
        store: store(&settings, database),
        migrate_on_start: settings.switch(Key::MigrateOnStart),
        turn_retention: settings.duration(Key::TurnRetention),
        timing: timing(&settings),
        rebalance: rebalance(&settings),
        limits: limits(&settings),
        breaker: breaker(&settings),
        routes: found.routes,
        auth,
        allowed_origins: settings.texts(Key::AllowedOrigins),
        peer,
        history_keys,
        admin_token,
        telemetry: telemetry(&settings, otlp),
        warnings,
    };
    if faults.is_empty() {
        return Ok((Loaded { config, settings, file }, idle));
    }
    faults.extend(idle);
    Err(faults)
}

/// What `migrate` needs: the same settings, of which only the database's are judged.
///
/// # Errors
/// All faults of the file and of the database's settings.
pub fn load_store(args: &ServeArgs, env: Env<'_>) -> Result<StoreOptions, Faults> {
    let mut faults = Faults::default();
    let file = read_file(args, env, &mut faults);
    let database = |key: Key| key.setting().section == Section::Database;
    let mut settings = Resolved::new(database, args, env, &file, &mut faults);
    fill_database(&mut settings, env, &mut faults);
    let database = database::read(&settings, &mut faults);
    faults.or(store(&settings, database))
}

fn read_file(args: &ServeArgs, env: Env<'_>, faults: &mut Faults) -> File {
    match Resolved::config_path(args, env) {
        Some((path, place)) => File::read(&path, &place, faults),
        None => File::default(),
    }
}

fn set(env: Env<'_>, name: &str) -> Option<String> {
    env(name).filter(|text| !text.is_empty())
}

/// Defaults that are found out at start.
fn fill(settings: &mut Resolved, env: Env<'_>, faults: &mut Faults) {
    let host = || hostname::get().ok().and_then(|name| name.into_string().ok());
    let node_id = set(env, "POD_NAME").or_else(host).unwrap_or_default();
    settings.fill(Key::NodeId, node_id, faults);
    fill_database(settings, env, faults);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(1024);
    settings.fill(Key::Threads, threads.to_string(), faults);
    let margin = (settings.duration(Key::LeaseTtl) / 5).max(LEASE_MARGIN_MIN);
    settings.fill(Key::LeaseMargin, duration_text(margin), faults);
    if let Some(advertise) = pod_address(settings, env, faults) {
        settings.fill(Key::Advertise, advertise, faults);
    }
}

/// The stable DNS name of a stateful pod, if a headless service is named.
fn pod_address(settings: &Resolved, env: Env<'_>, faults: &mut Faults) -> Option<String> {
    let service = settings.text(Key::HeadlessService)?;
    if settings.text(Key::Advertise).is_some() || !settings.sound(&[Key::PeerListen]) {
        return None;
    }
    let mut need = |name: &str| {
        let value = set(env, name);
        if value.is_none() {
            let expected = "the pod's own, from the downward API, since headless-service is set \
                            and advertise is not";
            faults.push(name, Got::Missing, expected);
        }
        value
    };
    let (pod, namespace) = (need("POD_NAME"), need("POD_NAMESPACE"));
    let domain = settings.text(Key::ClusterDomain).unwrap_or_default();
    let port = settings.address(Key::PeerListen).port();
    Some(format!("{}.{service}.{}.svc.{domain}:{port}", pod?, namespace?))
}

/// The embedded one, unless a file says where the database is.
fn fill_database(settings: &mut Resolved, env: Env<'_>, faults: &mut Faults) {
    if settings.text(Key::DatabaseUrlFile).is_none() {
        settings.fill(Key::DatabaseUrl, default_database(env), faults);
    }
}

/// The embedded database: in the user's state directory if there is one.
fn default_database(env: Env<'_>) -> String {
    let state = set(env, "XDG_STATE_HOME").map(PathBuf::from);
    let home = || set(env, "HOME").map(|home| PathBuf::from(home).join(".local/state"));
    // The XDG specification has relative paths ignored.
    let absolute = state.filter(|path| path.is_absolute()).or_else(home);
    match absolute.filter(|path| path.is_absolute()) {
        Some(path) => format!("sqlite://{}", path.join("ringspan/ringspan.db").display()),
        None => "sqlite://ringspan.db".into(),
    }
}

fn node(settings: &Resolved, env: Env<'_>) -> Node {
    Node {
        id: settings.text(Key::NodeId).unwrap_or_default(),
        listen: settings.address(Key::Listen),
        peer_listen: settings.address(Key::PeerListen),
        admin_listen: settings.address(Key::AdminListen),
        advertise: settings.text(Key::Advertise),
        zone: settings.text(Key::Zone),
        weight: settings.count(Key::Weight),
        capacity: settings.count(Key::Capacity),
        supersede: set(env, "POD_UID").is_some(),
        threads: settings.count(Key::Threads),
        static_members: settings.members(Key::StaticMembers),
    }
}

fn store(settings: &Resolved, database: Database) -> StoreOptions {
    StoreOptions {
        url: database.url,
        direct_url: database.direct_url,
        max_connections: settings.count(Key::DatabaseMaxConnections),
        timeout: settings.duration(Key::DatabaseTimeout),
    }
}

fn timing(settings: &Resolved) -> Timing {
    Timing {
        heartbeat_interval: settings.duration(Key::HeartbeatInterval),
        lease_ttl: settings.duration(Key::LeaseTtl),
        lease_margin: settings.duration(Key::LeaseMargin),
        ring_poll: settings.duration(Key::RingPoll),
        drain_dwell: settings.duration(Key::DrainDwell),
        drain_timeout: settings.duration(Key::DrainTimeout),
        drain_cleanup: settings.duration(Key::DrainCleanup),
    }
}

fn rebalance(settings: &Resolved) -> Option<Rebalance> {
    let gentle = settings.text(Key::Rebalance).as_deref() == Some("gentle");
    gentle.then(|| Rebalance {
        tolerance: settings.count(Key::RebalanceTolerance),
        per_second: settings.count(Key::RebalanceRate),
        idle: settings.duration(Key::RebalanceIdle),
    })
}

fn limits(settings: &Resolved) -> Limits {
    let limit = |key| Some(settings.count(key)).filter(|limit| *limit > 0);
    Limits {
        max_message_bytes: settings.count(Key::MaxMessageBytes),
        link_window_bytes: settings.count(Key::LinkWindow),
        max_clients_per_session: settings.count(Key::MaxClientsPerSession),
        max_clients: settings.count(Key::MaxClients),
        replay_bytes: settings.count(Key::ReplayBytes),
        history_bytes: settings.count(Key::HistoryBytes),
        replay_ttl: settings.duration(Key::ReplayTtl),
        turn_queue: settings.count(Key::TurnQueue),
        upgrade_timeout: settings.duration(Key::UpgradeTimeout),
        dial_timeout: settings.duration(Key::DialTimeout),
        turn_idle_timeout: settings.duration(Key::TurnIdleTimeout),
        write_timeout: settings.duration(Key::WriteTimeout),
        principal: PrincipalLimits {
            sessions: limit(Key::SessionsPerPrincipal),
            turns: limit(Key::TurnsPerPrincipal),
            turns_per_minute: limit(Key::TurnRatePerPrincipal),
        },
    }
}

fn breaker(settings: &Resolved) -> BreakerRules {
    let open = settings.duration(Key::BreakerOpen);
    BreakerRules {
        failures: settings.count(Key::BreakerFailures),
        open,
        max_open: settings.duration(Key::BreakerMaxOpen).max(open),
    }
}

fn telemetry(settings: &Resolved, otlp: Collectors) -> Telemetry {
    let json = settings.text(Key::LogFormat).as_deref() == Some("json");
    Telemetry {
        log_format: if json { LogFormat::Json } else { LogFormat::Text },
        log_filter: settings.text(Key::LogFilter).unwrap_or_default(),
        otlp,
    }
}
