//! TLS to a server with libpq's `sslmode` (`fe-secure-openssl.c`, PostgreSQL 14 to 18), on rustls.
//!
//! What holds: with `verify-ca` the certificate's chain ends at a trusted root, with `verify-full`
//! the name fits as well, and `require` verifies the chain when the root file exists. In every mode
//! the server proves that it has the certificate's key, which channel binding relies on. Root
//! certificates are read only where they are needed. Revocation lists are not supported.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::conninfo::Settings;
use super::tls_verifier::{Trust, Verifier};
use crate::error::{Error, Result};

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Where trusted roots come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Roots {
    /// `sslrootcert=system`.
    System,
    /// `sslrootcert`.
    Given(PathBuf),
    /// `~/.postgresql/root.crt`, if it exists.
    Default(PathBuf),
    /// There is no home directory.
    Nowhere,
}

/// The `ssl*` settings of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TlsSettings {
    pub(super) mode: SslMode,
    roots: Roots,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsSettings {
    /// Reads the `ssl*` settings; `home` is where libpq's default files are.
    pub(super) fn read(settings: &Settings, home: Option<&Path>) -> Result<Self> {
        let default = |name: &str| home.map(|home| home.join(".postgresql").join(name));
        let roots = match settings.get("sslrootcert") {
            Some("system") => Roots::System,
            Some(path) => Roots::Given(PathBuf::from(path)),
            None => default("root.crt").map_or(Roots::Nowhere, Roots::Default),
        };
        let certificate = match settings.get("sslcert").map(PathBuf::from) {
            None => default("postgresql.crt").filter(|path| path.exists()),
            given => given,
        };
        let key = settings
            .get("sslkey")
            .map(PathBuf::from)
            .or_else(|| default("postgresql.key"));
        Ok(Self {
            mode: mode(settings, &roots)?,
            roots,
            certificate,
            key,
        })
    }

    /// What rustls needs to know. `host` is the name the certificate must have with `verify-full`.
    pub(super) fn client_config(&self, host: Option<&str>) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier {
            trust: self.trust()?,
            host: self.name_to_verify(host)?,
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal(format!("set up TLS: {error}; this is a defect in walship")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let (chain, key) = self.client_certificate(path)?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    Error::invalid(format!(
                        "the client certificate {} cannot be used: {error}; check sslcert and sslkey",
                        path.display()
                    ))
                })?
            }
        };
        Ok(Arc::new(config))
    }

    /// The roots to verify the chain against, unless this mode does not verify it.
    fn trust(&self) -> Result<Option<Trust>> {
        let must = matches!(self.mode, SslMode::VerifyCa | SslMode::VerifyFull);
        let path = match &self.roots {
            _ if !must && self.mode != SslMode::Require => return Ok(None),
            Roots::System => return trust(system_roots(), "the system's").map(Some),
            Roots::Default(path) if !must && !path.exists() => return Ok(None),
            Roots::Nowhere if !must => return Ok(None),
            Roots::Given(path) | Roots::Default(path) => path,
            Roots::Nowhere => {
                return Err(Error::invalid(
                    "sslmode asks for a verified certificate but no root certificate is named; set sslrootcert to its file, or to system",
                ));
            }
        };
        trust(certificates(path, "sslrootcert")?, &path.display().to_string()).map(Some)
    }

    fn name_to_verify(&self, host: Option<&str>) -> Result<Option<String>> {
        if self.mode != SslMode::VerifyFull {
            return Ok(None);
        }
        let host = host.ok_or_else(|| {
            Error::invalid("sslmode=verify-full needs the server's name; set host beside hostaddr")
        })?;
        Ok(Some(host.to_owned()))
    }

    fn client_certificate(
        &self,
        path: &Path,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = certificates(path, "sslcert")?;
        let key_path = self.key.as_deref().ok_or_else(|| {
            Error::invalid(format!(
                "there is no key for the client certificate {}; set sslkey",
                path.display()
            ))
        })?;
        check_key_permissions(key_path)?;
        let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| {
            Error::invalid(format!(
                "the key {} cannot be read: {}; sslkey must be a PEM file without a passphrase",
                key_path.display(),
                pem_reason(&error)
            ))
        })?;
        Ok((chain, key))
    }
}

fn mode(settings: &Settings, roots: &Roots) -> Result<SslMode> {
    let expected = "disable, allow, prefer, require, verify-ca or verify-full";
    let mode = settings.parse("sslmode", expected, |text| {
        Some(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return None,
        })
    })?;
    match (roots, mode) {
        (Roots::System, None) => Ok(SslMode::VerifyFull),
        (Roots::System, Some(weak)) if weak != SslMode::VerifyFull => Err(Error::invalid(
            "sslrootcert=system trusts every public authority, so it needs sslmode=verify-full; set that or leave sslmode out",
        )),
        (_, mode) => Ok(mode.unwrap_or(SslMode::Prefer)),
    }
}

fn system_roots() -> Vec<CertificateDer<'static>> {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!("a root certificate of the system was skipped: {error}");
    }
    loaded.certs
}

fn trust(certificates: Vec<CertificateDer<'static>>, origin: &str) -> Result<Trust> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    if roots.is_empty() {
        return Err(Error::invalid(format!(
            "none of the root certificates ({origin}) can be used; check sslrootcert"
        )));
    }
    Ok(Trust { roots, certificates })
}

fn certificates(path: &Path, keyword: &str) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error: &rustls::pki_types::pem::Error| {
        Error::invalid(format!(
            "the certificate file {} cannot be read: {}; {keyword} must be a PEM file",
            path.display(),
            pem_reason(error)
        ))
    };
    let found =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let found = found.map_err(|error| wrong(&error))?;
    if found.is_empty() {
        return Err(wrong(&rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

/// Why a PEM file was refused, without any of its text.
fn pem_reason(error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(error) => error.to_string(),
        rustls::pki_types::pem::Error::NoItemsFound => "nothing of the kind is in it".to_owned(),
        _ => "it is damaged".to_owned(),
    }
}

/// libpq's rule: private to its owner, or root's and readable by the group.
fn check_key_permissions(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        Error::invalid(format!(
            "the key {} cannot be read: {error}; check sslkey",
            path.display()
        ))
    })?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(Error::invalid(format!(
            "the key {} can be used by group or others; run chmod 0600 on it",
            path.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::conninfo::Origin;
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> TlsSettings {
        try_settings(pairs).unwrap()
    }

    fn try_settings(pairs: &[(&str, &str)]) -> Result<TlsSettings> {
        let mut settings = Settings::default();
        for (name, value) in pairs {
            settings.set(name, (*value).to_owned(), Origin::Given)?;
        }
        TlsSettings::read(&settings, Some(Path::new("/nowhere")))
    }

    #[test]
    fn the_systems_roots_ask_for_a_verified_name() {
        assert_eq!(settings(&[("sslrootcert", "system")]).mode, SslMode::VerifyFull);
        assert!(try_settings(&[("sslrootcert", "system"), ("sslmode", "require")]).is_err());
    }

    #[test]
    fn no_root_is_read_unless_the_mode_verifies() {
        for mode in ["disable", "allow", "prefer"] {
            let tls = settings(&[("sslmode", mode), ("sslrootcert", "/nowhere/root.crt")]);
            assert!(tls.trust().unwrap().is_none(), "{mode}");
        }
        assert!(settings(&[("sslmode", "require")]).trust().unwrap().is_none());
    }

    #[test]
    fn a_root_file_that_verification_needs_and_does_not_find_is_an_error() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let tls = settings(&[("sslmode", mode), ("sslrootcert", "/nowhere/ca.crt")]);
            let error = tls.trust().unwrap_err().to_string();
            assert!(error.contains("/nowhere/ca.crt"), "{error}");
        }
        assert!(settings(&[("sslmode", "verify-ca")]).trust().is_err());
    }
}
