//! TLS between nodes. Both sides show a certificate of the ring's authority that names a
//! member; the files are read again when they change, so certificates are renewed without a
//! restart. Connections that are open go on under what they began with.

use std::{collections::VecDeque, io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig, client::verify_server_name, server::ParsedCertificate,
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::{
    door::{Admitted, Door, RETRY},
    transport::{Stream, wrap},
};
use crate::{net::TcpListener, store::Member, upstream::read_text};

/// Largest file of certificates or of a key, in bytes.
const MAX_FILE: usize = 1 << 20;

/// Limit of reading one.
const READ: Duration = Duration::from_secs(2);

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How long a peer may take for its handshake, and how many may be at it.
const HANDSHAKE: Duration = Duration::from_secs(5);
const HANDSHAKES: usize = 256;

/// Where a node's certificate, its key and the ring's authority are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
}

/// What the files hold.
#[derive(Clone, PartialEq, Eq)]
struct Material {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl Files {
    async fn read(&self) -> anyhow::Result<Material> {
        let read = async |path: &PathBuf, what: &str| {
            let text = read_text(path.clone(), MAX_FILE, READ).await;
            let text = text.map(|text| text.to_vec()).map_err(anyhow::Error::msg);
            text.with_context(|| format!("peer {what} {}", path.display()))
        };
        Ok(Material {
            cert: read(&self.cert, "certificate").await?,
            key: read(&self.key, "key").await?,
            ca: read(&self.ca, "authority").await?,
        })
    }
}

/// The client's half. It reads the files for each connection, of which there are few.
pub(super) struct Client {
    files: Files,
    /// What was of use last.
    last: Mutex<Option<ClientTlsConfig>>,
}

impl Client {
    pub(super) fn new(files: Files) -> Self {
        Self { files, last: Mutex::default() }
    }

    /// Has an endpoint show our certificate, as its file is now; one that is of no use is
    /// passed over for the one before.
    ///
    /// # Errors
    /// None has been of use yet.
    pub(super) async fn secure(&self, endpoint: Endpoint) -> anyhow::Result<Endpoint> {
        let fresh = self.files.read().await.and_then(|material| {
            let identity = Identity::from_pem(material.cert, material.key);
            let authority = Certificate::from_pem(material.ca);
            let config = ClientTlsConfig::new().identity(identity).ca_certificate(authority);
            let endpoint = endpoint.clone().tls_config(config.clone())?;
            *self.last.lock() = Some(config);
            Ok(endpoint)
        });
        let error = match fresh {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) => error,
        };
        let last = self.last.lock().clone();
        Ok(endpoint.tls_config(last.ok_or(error)?)?)
    }
}

impl Material {
    /// The server's half.
    fn server(&self) -> anyhow::Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for anchor in CertificateDer::pem_slice_iter(&self.ca) {
            roots.add(anchor.context("the peer authority")?)?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .context("the peer authority")?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .context("the peer certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).context("the peer key")?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .context("the peer certificate and its key")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// Accepts peers and shakes hands with each beside the others. Where too many are at it, the one
/// that has taken longest is given up: those who say nothing keep nobody out.
///
/// # Errors
/// Files that cannot be used.
pub(super) async fn accept(
    listener: TcpListener,
    files: Files,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<ReceiverStream<io::Result<Admitted<TlsStream<Stream>>>>> {
    let material = files.read().await?;
    let (current, config) = watch::channel(Arc::new(material.server()?));
    tracker.spawn(stop.clone().run_until_cancelled_owned(follow(files, material, current)));
    let (connections, accepted) = mpsc::channel(16);
    let beside = tracker.clone();
    let accepting = async move {
        let mut shaking: VecDeque<AbortHandle> = VecDeque::with_capacity(HANDSHAKES);
        let door = Door::default();
        loop {
            let Ok((stream, address)) = listener.accept().await else {
                sleep(RETRY).await;
                continue;
            };
            shaking.retain(|task| !task.is_finished());
            if shaking.len() >= HANDSHAKES
                && let Some(oldest) = shaking.pop_front()
            {
                oldest.abort();
            }
            let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
            let (connections, door) = (connections.clone(), door.clone());
            let task = beside.spawn(async move {
                // Latency over fewer packets; a socket that refuses the option still works.
                stream.set_nodelay(true).ok();
                match timeout(HANDSHAKE, acceptor.accept(wrap(stream))).await {
                    // Who has no certificate of the ring counts for nothing here.
                    Ok(Ok(stream)) => {
                        if let Some(place) = door.enter(address.ip()) {
                            drop(connections.send(Ok(Admitted::new(stream, place))).await);
                        }
                    }
                    Ok(Err(error)) => tracing::warn!(%error, "a peer's handshake failed"),
                    Err(_) => tracing::warn!("a peer's handshake took too long"),
                }
            });
            shaking.push_back(task.abort_handle());
        }
    };
    tracker.spawn(stop.clone().run_until_cancelled_owned(accepting));
    Ok(ReceiverStream::new(accepted))
}

/// Takes files over that changed and are sound; with others it stays as it is.
async fn follow(files: Files, mut known: Material, current: watch::Sender<Arc<ServerConfig>>) {
    loop {
        sleep(LOOK).await;
        let material = match files.read().await {
            Ok(material) if material != known => material,
            Ok(_) => continue,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "peer certificates cannot be read");
                continue;
            }
        };
        match material.server() {
            Ok(config) => {
                tracing::info!("peer certificates were renewed");
                current.send_replace(Arc::new(config));
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "peer certificates are of no use, the earlier ones stay");
            }
        }
        known = material;
    }
}

/// Whether a certificate names this member: by the host of its peer address, or its node id.
pub(super) fn names(certificate: &CertificateDer<'_>, member: &Member) -> bool {
    let Ok(certificate) = ParsedCertificate::try_from(certificate) else { return false };
    let host = member.peer_addr.rsplit_once(':').map_or("", |(host, _)| host);
    [host.trim_matches(['[', ']']), &member.node_id].into_iter().any(|name| {
        let name = ServerName::try_from(name);
        name.is_ok_and(|name| verify_server_name(&certificate, &name).is_ok())
    })
}
