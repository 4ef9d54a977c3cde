//! Getting to S3: endpoint, region, credentials and the HTTP client. Only what is needed is loaded.
//!
//! Keys in the environment are taken without the AWS configuration machinery, and a plain-HTTP
//! endpoint gets a client without TLS: together that is most of a one-shot process's start.

use std::path::Path;
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::service_config::ServiceConfigKey;

use crate::options::{Environment, S3Options};
use walship_core::{Error, Result};

/// Region of servers that have none: by convention their clients sign with this.
const CONVENTIONAL_REGION: &str = "us-east-1";

/// Everything that has to be known before the S3 client is made.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) config: SdkConfig,
    pub(super) http_client: SharedHttpClient,
    /// None for AWS itself.
    pub(super) endpoint: Option<String>,
}

/// Finds out the endpoint, the region and the credentials. Asks the network only if AWS must tell the region (IMDS),
/// for at most `limit`.
pub(super) async fn connect(options: &S3Options, limit: Duration) -> Result<Connection> {
    let environment = &options.environment;
    let endpoint = options.endpoint_set();
    let region = options
        .region
        .clone()
        .or_else(|| environment.get("AWS_REGION"))
        .or_else(|| environment.get("AWS_DEFAULT_REGION"));
    if let Some(credentials) = plain_keys(environment) {
        let region = match (&endpoint, region.clone()) {
            (Some(_), region) => Some(region.unwrap_or_else(|| CONVENTIONAL_REGION.to_owned())),
            // A configuration file may hold an endpoint.
            (None, Some(region)) if !has_config_file(environment) => Some(region),
            (None, _) => None,
        };
        if let Some(region) = region {
            return by_hand(options, endpoint, region, credentials);
        }
    }
    let loading = load(options, endpoint, region);
    tokio::time::timeout(limit, loading).await.unwrap_or_else(|_| {
        Err(Error::unavailable(
            "the AWS configuration could not be loaded in time; set AWS_REGION, or an endpoint",
        ))
    })
}

/// The keys in the environment, unless another variable asks for the AWS configuration.
fn plain_keys(environment: &Environment) -> Option<Credentials> {
    const ASKING: [&str; 4] = [
        "AWS_PROFILE",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    ];
    if ASKING.iter().any(|name| environment.get(name).is_some()) {
        return None;
    }
    let (key, secret) = (
        environment.get("AWS_ACCESS_KEY_ID")?,
        environment.get("AWS_SECRET_ACCESS_KEY")?,
    );
    Some(Credentials::new(
        key,
        secret,
        environment.get("AWS_SESSION_TOKEN"),
        None,
        "environment",
    ))
}

fn has_config_file(environment: &Environment) -> bool {
    environment.get("AWS_CONFIG_FILE").is_some()
        || environment
            .get("HOME")
            .is_some_and(|home| Path::new(&home).join(".aws/config").exists())
}

fn by_hand(
    options: &S3Options,
    endpoint: Option<String>,
    region: String,
    credentials: Credentials,
) -> Result<Connection> {
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    Ok(Connection {
        config,
        http_client: http_client(endpoint.as_deref(), options)?,
        endpoint,
    })
}

/// The standard AWS chain: environment, profile, SSO, web identity, container, IMDS.
async fn load(options: &S3Options, endpoint: Option<String>, region: Option<String>) -> Result<Connection> {
    // Credentials come from AWS itself, whose certificates `ca_file` need not cover.
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(https_client(None)?);
    loader = match (region, &endpoint) {
        (Some(region), _) => loader.region(Region::new(region)),
        // IMDS is not asked for the region of another server.
        (None, Some(_)) => loader.region(
            RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                .or_else(ProfileFileRegionProvider::new())
                .or_else(Region::new(CONVENTIONAL_REGION)),
        ),
        (None, None) => loader,
    };
    let mut config = loader.load().await;
    let endpoint = endpoint.or_else(|| configured_endpoint(&config));
    if config.region().is_none() {
        if endpoint.is_none() {
            let profile = options.environment.get("AWS_PROFILE");
            let profile = profile.map(|name| format!(" (is there a profile \"{}\"?)", name.escape_debug()));
            return Err(Error::invalid(format!(
                "no AWS region is known{}; set AWS_REGION, region in [s3], or region in the AWS profile",
                profile.unwrap_or_default()
            )));
        }
        config = config
            .into_builder()
            .region(Region::new(CONVENTIONAL_REGION))
            .build();
    }
    Ok(Connection {
        http_client: http_client(endpoint.as_deref(), options)?,
        config,
        endpoint,
    })
}

/// `endpoint_url` of the profile, or of its section of services.
fn configured_endpoint(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    let of_service = config
        .service_config()
        .and_then(|services| services.load_config(key));
    of_service.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// A client without TLS for `http://`, else one that trusts the system's or the given authorities.
fn http_client(endpoint: Option<&str>, options: &S3Options) -> Result<SharedHttpClient> {
    let Some(endpoint) = endpoint else {
        return https_client(options.ca_file.as_deref());
    };
    // Not echoed: it may hold a password.
    if endpoint.contains(['@', '?', '#']) {
        return Err(Error::invalid(
            "the S3 endpoint must not have a user, a query or a fragment; write http://host:port or https://host",
        ));
    }
    match endpoint.split_once("://") {
        Some(("http", host)) if !host.is_empty() => Ok(Builder::new().build_http()),
        Some(("https", host)) if !host.is_empty() => https_client(options.ca_file.as_deref()),
        _ => Err(Error::invalid(format!(
            "the S3 endpoint \"{}\" is not an address; write http://host:port or https://host",
            endpoint.escape_debug()
        ))),
    }
}

fn https_client(ca_file: Option<&Path>) -> Result<SharedHttpClient> {
    let trusted = match ca_file {
        None => TrustStore::empty().with_native_roots(true),
        Some(path) => {
            let refused = |why: String| {
                Error::invalid(format!(
                    "the CA file {} {why}; give a PEM file of certificates",
                    path.display()
                ))
            };
            let pem = std::fs::read(path).map_err(|error| refused(format!("cannot be read ({error})")))?;
            // The HTTP client panics on a file that holds none.
            if !pem.windows(27).any(|text| text == b"-----BEGIN CERTIFICATE-----") {
                return Err(refused("holds no certificate".to_owned()));
            }
            TrustStore::empty().with_pem_certificate(pem)
        }
    };
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|error| Error::internal(format!("TLS cannot be set up: {error}")))?;
    Ok(Builder::new()
        .tls_provider(Provider::rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::ProvideCredentials;

    use super::*;

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")];

    fn connected(options: &S3Options) -> Result<Connection> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(connect(options, Duration::from_secs(10)))
    }

    fn with(variables: &[(&str, &str)]) -> S3Options {
        let variables = KEYS.iter().chain(variables).map(|(name, value)| (*name, *value));
        S3Options {
            environment: Environment::of(variables),
            ..S3Options::default()
        }
    }

    fn region(connection: &Connection) -> String {
        connection.config.region().unwrap().to_string()
    }

    #[test]
    fn the_endpoint_is_the_settings_before_the_services_before_the_general() {
        let mut options = with(&[
            ("AWS_ENDPOINT_URL", "http://c"),
            ("AWS_ENDPOINT_URL_S3", "http://b"),
        ]);
        assert_eq!(connected(&options).unwrap().endpoint.as_deref(), Some("http://b"));
        options.endpoint = Some("http://a".into());
        assert_eq!(connected(&options).unwrap().endpoint.as_deref(), Some("http://a"));
        let options = with(&[("AWS_ENDPOINT_URL", "http://c"), ("AWS_ENDPOINT_URL_S3", "")]);
        assert_eq!(connected(&options).unwrap().endpoint.as_deref(), Some("http://c"));
    }

    #[test]
    fn the_region_of_another_server_may_be_left_out() {
        let mut options = with(&[("AWS_ENDPOINT_URL", "http://c")]);
        assert_eq!(region(&connected(&options).unwrap()), "us-east-1");
        options = with(&[
            ("AWS_ENDPOINT_URL", "http://c"),
            ("AWS_DEFAULT_REGION", "x"),
            ("AWS_REGION", "y"),
        ]);
        assert_eq!(region(&connected(&options).unwrap()), "y");
        options.region = Some("z".into());
        assert_eq!(region(&connected(&options).unwrap()), "z");
    }

    #[test]
    fn keys_in_the_environment_are_taken_by_hand_unless_more_is_asked_for() {
        let given = |variables: &[(&str, &str)]| plain_keys(&with(variables).environment);
        assert_eq!(given(&[]).unwrap().access_key_id(), "key");
        assert_eq!(
            given(&[("AWS_SESSION_TOKEN", "token")]).unwrap().session_token(),
            Some("token")
        );
        assert!(given(&[("AWS_PROFILE", "other")]).is_none());
        assert!(given(&[("AWS_USE_FIPS_ENDPOINT", "true")]).is_none());
        assert!(plain_keys(&Environment::of([KEYS[0]])).is_none());
        let connection = connected(&with(&[("AWS_REGION", "eu-west-1")])).unwrap();
        let provider = connection.config.credentials_provider().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let credentials = runtime.block_on(provider.provide_credentials()).unwrap();
        assert_eq!(credentials.access_key_id(), "key");
        assert_eq!(connection.endpoint, None);
    }

    #[test]
    fn what_is_not_an_endpoint_is_refused_and_a_password_in_it_never_repeated() {
        for endpoint in [
            "localhost:9000",
            "ftp://host",
            "http://",
            "http://key:secret@host",
            "http://host?x",
        ] {
            let options = S3Options {
                endpoint: Some(endpoint.into()),
                ..with(&[])
            };
            let error = connected(&options).unwrap_err();
            assert_eq!(error.kind(), walship_core::ErrorKind::Invalid);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_ca_file_must_hold_a_certificate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no certificate").unwrap();
        for path in [file.path(), Path::new("/nowhere/ca.pem")] {
            let ca_file = Some(path.to_owned());
            let options = S3Options {
                endpoint: Some("https://host".into()),
                ca_file,
                ..with(&[])
            };
            let error = connected(&options).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
