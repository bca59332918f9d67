//! Certificates, read again when they change, and complained about before they are over.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::systemd;
use super::validity::validity;

/// How often it is looked whether the files have changed.
const LOOK: Duration = Duration::from_secs(5);
/// So long before its end a certificate is complained about, and so often.
const EARLY: TimeDelta = TimeDelta::days(21);
const COMPLAIN: Duration = Duration::from_secs(12 * 3600);

/// What a listener shows, and from whom it wants to see something.
pub struct Tls {
    files: Files,
    now: RwLock<Shown>,
}

struct Shown {
    config: Arc<ServerConfig>,
    /// When the certificate is over; `None` if nobody knows.
    ends: Option<DateTime<Utc>>,
    /// What the files looked like before they were read, whether they were usable or not.
    looked: Vec<Option<Look>>,
}

/// How a file looks: different once another stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_authority: Option<PathBuf>,
}

impl Files {
    fn look(&self) -> Vec<Option<Look>> {
        let all = [Some(&self.certificate), Some(&self.key), self.client_authority.as_ref()];
        let look = |meta: std::fs::Metadata| Look {
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.mtime(), meta.mtime_nsec()),
        };
        all.into_iter().flatten().map(|path| std::fs::metadata(path).ok().map(look)).collect()
    }

    fn read(&self) -> Result<(Arc<ServerConfig>, Option<DateTime<Utc>>), String> {
        let wrong = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let chain = certificates(&self.certificate)?;
        let span = chain.first().and_then(|own| validity(own));
        if let Some((begins, ends)) = span {
            let now = Utc::now();
            if ends <= now {
                let days = (now - ends).num_days();
                return Err(wrong(
                    &self.certificate,
                    &format!("it was over {days} days ago, on {ends}: renew it"),
                ));
            }
            if begins > now {
                tracing::warn!(file = %self.certificate.display(), from = %begins, "the certificate is not good yet");
            }
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| wrong(&self.key, &format!("it holds no private key in PEM ({error})")))?;
        if std::fs::metadata(&self.key).is_ok_and(|meta| meta.mode() & 0o007 != 0) {
            tracing::warn!(file = %self.key.display(), "everybody on this machine can read this key: chmod o= it");
        }
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
        let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                wrong(&self.certificate, &format!("it does not go with the key in {}", self.key.display()))
            }
            error => wrong(&self.certificate, &format!("it cannot be used ({error})")),
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok((Arc::new(config), span.map(|(_, ends)| ends)))
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
        // Before they are read: what changes while they are is seen at the next look.
        let looked = files.look();
        let (config, ends) = files.read()?;
        let tls = Self { files, now: RwLock::new(Shown { config, ends, looked }) };
        tls.complain();
        Ok(Arc::new(tls))
    }

    /// Reads the files again when they change, and at SIGHUP, for as long as it is awaited. What is wrong is logged, and
    /// what was right before goes on being shown. Connections under way are not touched.
    pub async fn watch(&self) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => Some(hangup),
            Err(error) => {
                tracing::warn!(%error, "SIGHUP is not heard; certificates that change are found all the same");
                None
            }
        };
        let mut complained = Instant::now();
        loop {
            let asked = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let asked = tokio::select! {
                _ = asked => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            if asked || self.files.look() != self.shown().looked {
                systemd::reloading();
                self.read_again();
                systemd::tell("READY=1");
            }
            if complained.elapsed() >= COMPLAIN {
                complained = Instant::now();
                self.complain();
            }
        }
    }

    fn read_again(&self) {
        let looked = self.files.look();
        let read = self.files.read();
        let file = self.files.certificate.display();
        let mut shown = self.now.write().unwrap_or_else(PoisonError::into_inner);
        shown.looked = looked;
        match read {
            Ok((config, ends)) => {
                (shown.config, shown.ends) = (config, ends);
                drop(shown);
                tracing::info!(%file, "a new certificate is shown from now on");
                self.complain();
            }
            Err(why) => {
                metrics::counter!("backstay_certificate_refused_total").increment(1);
                tracing::error!(why, "the new certificate is not usable; the one before goes on being shown");
            }
        }
    }

    /// When the certificate is over; `None` if nobody knows.
    pub fn ends(&self) -> Option<DateTime<Utc>> {
        self.shown().ends
    }

    fn complain(&self) {
        let Some(ends) = self.ends() else { return };
        let left = ends - Utc::now();
        #[allow(clippy::cast_precision_loss, reason = "there are not so many days")]
        metrics::gauge!("backstay_certificate_days_left").set(left.num_days() as f64);
        if left < EARLY {
            let file = self.files.certificate.display();
            tracing::warn!(%file, days_left = left.num_days(), "the certificate is over soon: renew it");
        }
    }

    fn shown(&self) -> RwLockReadGuard<'_, Shown> {
        self.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.shown().config);
        TlsAcceptor::from(config).accept(stream).await
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::http) fn issue(dir: &Path, file: &str, days: i64) {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let end = chrono::Utc::now() + chrono::TimeDelta::days(days);
        use chrono::Datelike;
        params.not_after = rcgen::date_time_ymd(end.year(), end.month() as u8, end.day() as u8);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(dir.join(format!("{file}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for (file, days) in [("good", 30), ("other", 30), ("old", -10)] {
            issue(dir.path(), file, days);
        }
        std::fs::write(dir.path().join("text"), "no certificate").unwrap();
        let read = |certificate: &str, key: &str, authority: Option<&str>| {
            let path = |name: &str| dir.path().join(name);
            Tls::read(&path(certificate), &path(key), authority.map(path).as_deref())
        };
        let tls = read("good.pem", "good.key", Some("other.pem")).ok().unwrap();
        let left = (tls.ends().unwrap() - chrono::Utc::now()).num_days();
        assert!((28..=30).contains(&left), "{left}");
        for (certificate, key, authority, says) in [
            (
                "none.pem",
                "good.key",
                None,
                "none.pem: it holds no certificate in PEM (I/O error: No such file",
            ),
            ("text", "good.key", None, "text: it holds no certificate in PEM"),
            ("good.pem", "text", None, "text: it holds no private key in PEM"),
            (
                "good.pem",
                "none.key",
                None,
                "none.key: it holds no private key in PEM (I/O error: No such file",
            ),
            ("good.pem", "other.key", None, "good.pem: it does not go with the key in"),
            ("old.pem", "old.key", None, "old.pem: it was over 10 days ago"),
            ("good.pem", "good.key", Some("text"), "text: it holds no certificate in PEM"),
        ] {
            let why = read(certificate, key, authority).err().unwrap();
            assert!(why.contains(says), "{why}");
        }
    }

    #[tokio::test]
    async fn a_certificate_is_read_again_at_sighup_and_a_wrong_one_is_not_taken() {
        // Heard here as well, so that it never ends this process.
        let _heard = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("a.pem"), dir.path().join("a.key"));
        issue(dir.path(), "a", 30);
        let tls = Tls::read(&certificate, &key, None).unwrap();
        let watching = Arc::clone(&tls);
        let watching = tokio::spawn(async move { watching.watch().await });
        let left = || (tls.ends().unwrap() - chrono::Utc::now()).num_days();
        let told = async |days: i64| {
            issue(dir.path(), "a", days);
            let before = left();
            // Sooner than it looks by itself.
            for _ in 0..15 {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP)
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                if left() != before {
                    break;
                }
            }
            left()
        };
        assert!((58..=60).contains(&told(60).await));
        // It is over already.
        assert!((58..=60).contains(&told(-3).await));
        assert!((88..=90).contains(&told(90).await));
        watching.abort();
    }
}
