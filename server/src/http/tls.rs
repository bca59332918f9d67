//! Certificates, read again when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often it is looked whether the files have changed.
const LOOK: Duration = Duration::from_secs(5);

/// What a listener shows, and from whom it wants to see something.
pub struct Tls {
    files: Files,
    now: RwLock<Arc<ServerConfig>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_authority: Option<PathBuf>,
}

impl Files {
    fn changed(&self) -> Vec<Option<SystemTime>> {
        let all = [Some(&self.certificate), Some(&self.key), self.client_authority.as_ref()];
        all.into_iter()
            .flatten()
            .map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
            .collect()
    }

    fn read(&self) -> Result<Arc<ServerConfig>, String> {
        let wrong = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| wrong(&self.key, &format!("it holds no private key in PEM ({error})")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &self.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = rustls::RootCertStore::empty();
                for one in certificates(path)? {
                    roots.add(one).map_err(|error| wrong(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| wrong(path, &error))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            wrong(
                &self.certificate,
                &format!("it does not go with the key in {} ({error})", self.key.display()),
            )
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&format!("it holds no certificate in PEM ({error})")))?;
    if all.is_empty() { Err(wrong(&"it holds no certificate in PEM")) } else { Ok(all) }
}

impl Tls {
    /// Reads the files. With a client authority only clients that show a certificate of it may speak.
    pub fn read(
        certificate: &Path,
        key: &Path,
        client_authority: Option<&Path>,
    ) -> Result<Arc<Self>, String> {
        let files = Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            client_authority: client_authority.map(Path::to_owned),
        };
        let now = RwLock::new(files.read()?);
        Ok(Arc::new(Self { files, now }))
    }

    /// Reads the files again whenever they change, for as long as it is awaited. What is wrong is logged, and what was
    /// right before goes on being shown. Connections under way are not touched.
    pub async fn watch(&self) {
        let mut before = self.files.changed();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.files.changed();
            if now == before {
                continue;
            }
            before = now;
            match self.files.read() {
                Ok(config) => {
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = config;
                    tracing::info!(file = %self.files.certificate.display(), "a new certificate is shown from now on");
                }
                Err(why) => tracing::error!(
                    why,
                    "the new certificate is not usable; the one before goes on being shown"
                ),
            }
        }
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(config).accept(stream).await
    }
}
