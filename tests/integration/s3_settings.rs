//! What the settings of S3 become on the wire: storage class and encryption of each object, and the
//! credentials of each place they can come from.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::sample::{DataDirectory, Sample};
use crate::support::give_to_user;
use crate::support::process::Output;
use crate::support::proxy::{Proxy, Request};
use crate::support::stores::{Kind, Place, TestStore, chosen};
use crate::support::walship::Walship;

/// A place on a server of this test run, behind a proxy that sees what is sent.
fn watched(kind: Kind) -> Option<(Place, Proxy)> {
    let store = TestStore::Server(kind);
    if !chosen().contains(&store) {
        return None;
    }
    let place = store.new_place();
    let proxy = Proxy::start(place.endpoint().unwrap());
    Some((place.with_env("AWS_ENDPOINT_URL", &proxy.endpoint()), proxy))
}

fn push(data: &DataDirectory, walship: &Walship) -> Output {
    let segment = &Sample::shared().segments[0];
    walship
        .clone()
        .in_dir(data.path())
        .run(&["push", &format!("pg_wal/{segment}")])
}

fn puts(proxy: &Proxy) -> Vec<Request> {
    let requests = proxy.requests().into_iter();
    requests.filter(|request| request.method == "PUT").collect()
}

// Seen to fail: `crates/store/src/s3.rs`: each of the three headers left out
#[test]
fn every_object_is_put_with_the_storage_class_and_encryption_of_the_settings() {
    const CLASS: &str = "x-amz-storage-class";
    const ENCRYPTION: &str = "x-amz-server-side-encryption";
    const KEY: &str = "x-amz-server-side-encryption-aws-kms-key-id";
    let key = "arn:aws:kms:us-east-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    // It keeps what it is told and says so again.
    let Some((place, proxy)) = watched(Kind::LocalStack) else {
        return;
    };
    let data = Sample::shared().copy();
    let plain = Walship::at(&place);
    let kms = plain
        .clone()
        .env("WALSHIP_S3_STORAGE_CLASS", "STANDARD_IA")
        .env("WALSHIP_S3_SERVER_SIDE_ENCRYPTION", "aws:kms")
        .env("WALSHIP_S3_KMS_KEY_ID", key);
    push(&data, &kms).succeeded();
    let sent = puts(&proxy);
    assert!(
        sent.len() >= 3,
        "walship.probe, walship.json and the segment: {sent:?}"
    );
    for request in &sent {
        assert_eq!(request.header(CLASS), Some("STANDARD_IA"), "{request:?}");
        assert_eq!(request.header(ENCRYPTION), Some("aws:kms"), "{request:?}");
        assert_eq!(request.header(KEY), Some(key), "{request:?}");
    }
    let kept = head(&proxy, &sent.last().unwrap().target);
    for value in ["STANDARD_IA", "aws:kms", key] {
        assert!(kept.contains(value), "{kept}");
    }
    let segment = &Sample::shared().segments[0];
    kms.in_dir(data.path())
        .run(&["restore", segment, "pg_wal/RECOVERYXLOG"])
        .succeeded();

    for (setting, value, sent) in [
        (
            "WALSHIP_S3_SERVER_SIDE_ENCRYPTION",
            "AES256",
            [None, Some("AES256"), None],
        ),
        ("WALSHIP_LOG_LEVEL", "warn", [None; 3]),
    ] {
        let (place, proxy) = watched(Kind::LocalStack).unwrap();
        // Of a cluster that has no archive yet.
        let data = Sample::shared().copy();
        push(&data, &Walship::at(&place).env(setting, value)).succeeded();
        for request in puts(&proxy) {
            assert_eq!([CLASS, ENCRYPTION, KEY].map(|name| request.header(name)), sent);
        }
    }
}

/// The head of the answer to an unsigned HEAD.
fn head(proxy: &Proxy, target: &str) -> String {
    let address = proxy.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(
        stream,
        "HEAD {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n",
        target.split('?').next().unwrap()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

/// Where an AWS service would be: answers each request by its first line, with JSON or XML.
fn service(answers: &'static [(&'static str, &'static str)]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            thread::spawn(move || answer(&stream, answers));
        }
    });
    address
}

fn answer(stream: &TcpStream, answers: &[(&str, &str)]) -> Option<()> {
    let mut from = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if from.read_line(&mut first).ok()? == 0 {
            return None;
        }
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).ok()?;
        let found = answers.iter().find(|(request, _)| first.starts_with(request));
        let (status, text) = found.map_or(("404 Not Found", ""), |(_, text)| ("200 OK", *text));
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nx-aws-ec2-metadata-token-ttl-seconds: 600\r\n\r\n",
            text.len()
        );
        (&mut &*stream)
            .write_all(format!("{head}{text}").as_bytes())
            .ok()?;
    }
}

/// The keys that a service gave, on every request.
#[track_caller]
fn assert_signed_with(proxy: &Proxy, key: &str, token: Option<&str>) {
    let requests = proxy.requests();
    assert!(!requests.is_empty());
    for request in &requests {
        let authorization = request.header("authorization").unwrap_or_default();
        assert!(
            authorization.contains(&format!("Credential={key}/")),
            "{request:?}"
        );
        assert_eq!(request.header("x-amz-security-token"), token, "{request:?}");
    }
}

/// An archive whose environment has no keys.
fn without_keys(place: &Place) -> Walship {
    Walship::at(place)
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("WALSHIP_PUSH_TIMEOUT", "60s")
}

/// A file for walship's user, in the data directory's folder.
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    give_to_user(path);
}

// Seen to fail: `s3/connect.rs`: no credentials from the chain
#[test]
fn keys_come_from_a_profile_and_from_a_program_it_names() {
    // MinIO checks them.
    let Some((place, proxy)) = watched(Kind::MinIo) else {
        return;
    };
    let data = Sample::shared().copy();
    let value = |name: &str| place.env.iter().find(|(n, _)| *n == name).unwrap().1.clone();
    let (key, secret) = (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"));
    let file = |name: &str| data.file(name).to_str().unwrap().to_owned();
    write(
        &data.file("credentials"),
        &format!(
            "[good]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n[bad]\naws_access_key_id = {key}\naws_secret_access_key = wrong\n"
        ),
    );
    write(
        &data.file("answer.json"),
        &format!("{{\"Version\": 1, \"AccessKeyId\": \"{key}\", \"SecretAccessKey\": \"{secret}\"}}"),
    );
    write(
        &data.file("config"),
        &format!(
            "[profile program]\ncredential_process = /bin/cat {}\n",
            file("answer.json")
        ),
    );
    let walship = without_keys(&place)
        .env("AWS_SHARED_CREDENTIALS_FILE", file("credentials"))
        .env("AWS_CONFIG_FILE", file("config"));
    let refused = push(&data, &walship.clone().env("AWS_PROFILE", "bad")).exited(1);
    assert!(
        refused.stderr.contains("SignatureDoesNotMatch"),
        "{}",
        refused.stderr
    );
    for profile in ["good", "program"] {
        push(&data, &walship.clone().env("AWS_PROFILE", profile)).succeeded();
    }
    assert_signed_with(&proxy, &key, None);
}

#[test]
fn keys_come_from_a_web_identity() {
    let Some((place, proxy)) = watched(Kind::LocalStack) else {
        return;
    };
    let data = Sample::shared().copy();
    let sts = service(&[(
        "POST / ",
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAWEB</AccessKeyId>\
         <SecretAccessKey>secret</SecretAccessKey><SessionToken>web-token</SessionToken>\
         <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         <ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>",
    )]);
    write(&data.file("token"), "a token");
    let walship = without_keys(&place)
        .env("AWS_ENDPOINT_URL_S3", proxy.endpoint())
        .env_remove("AWS_ENDPOINT_URL")
        .env("AWS_ENDPOINT_URL_STS", format!("http://{sts}"))
        .env("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/archiver")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", data.file("token"));
    push(&data, &walship).succeeded();
    assert_signed_with(&proxy, "ASIAWEB", Some("web-token"));
}

#[test]
fn keys_come_from_the_metadata_service_of_an_instance() {
    let Some((place, proxy)) = watched(Kind::LocalStack) else {
        return;
    };
    let data = Sample::shared().copy();
    let imds = service(&[
        ("PUT /latest/api/token ", "a token"),
        (
            "GET /latest/meta-data/iam/security-credentials/archiver ",
            "{\"Code\": \"Success\", \"Type\": \"AWS-HMAC\", \"LastUpdated\": \"2026-01-01T00:00:00Z\",
              \"AccessKeyId\": \"ASIAIMDS\", \"SecretAccessKey\": \"secret\", \"Token\": \"imds-token\",
              \"Expiration\": \"2099-01-01T00:00:00Z\"}",
        ),
        ("GET /latest/meta-data/iam/security-credentials/ ", "archiver"),
    ]);
    let walship = without_keys(&place).env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{imds}"));
    push(&data, &walship).succeeded();
    assert_signed_with(&proxy, "ASIAIMDS", Some("imds-token"));
}

#[test]
fn keys_come_from_a_container_s_agent() {
    let Some((place, proxy)) = watched(Kind::LocalStack) else {
        return;
    };
    let data = Sample::shared().copy();
    let agent = service(&[(
        "GET /keys ",
        "{\"AccessKeyId\": \"ASIAECS\", \"SecretAccessKey\": \"secret\", \"Token\": \"ecs-token\",
          \"Expiration\": \"2099-01-01T00:00:00Z\"}",
    )]);
    let walship = without_keys(&place).env(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        format!("http://{agent}/keys"),
    );
    push(&data, &walship).succeeded();
    assert_signed_with(&proxy, "ASIAECS", Some("ecs-token"));
}

#[test]
fn keys_come_from_a_login_by_sso() {
    let Some((place, proxy)) = watched(Kind::LocalStack) else {
        return;
    };
    let data = Sample::shared().copy();
    let portal = service(&[(
        "GET /federation/credentials",
        "{\"roleCredentials\": {\"accessKeyId\": \"ASIASSO\", \"secretAccessKey\": \"secret\",
          \"sessionToken\": \"sso-token\", \"expiration\": 4070908800000}}",
    )]);
    let start = "https://example.awsapps.com/start";
    write(
        &data.file("config"),
        &format!(
            "[default]\nsso_start_url = {start}\nsso_region = us-east-1\nsso_account_id = 000000000000\n\
             sso_role_name = archiver\n"
        ),
    );
    let hashed = Command::new("sh")
        .args(["-c", &format!("printf %s '{start}' | sha1sum | cut -c 1-40")])
        .output()
        .unwrap();
    let cache = data.file(".aws/sso/cache");
    std::fs::create_dir_all(&cache).unwrap();
    let name = format!("{}.json", String::from_utf8(hashed.stdout).unwrap().trim());
    write(
        &cache.join(name),
        "{\"accessToken\": \"logged in\", \"expiresAt\": \"2099-01-01T00:00:00Z\", \"region\": \"us-east-1\",
          \"startUrl\": \"https://example.awsapps.com/start\"}",
    );
    let walship = without_keys(&place)
        .env("AWS_ENDPOINT_URL_S3", proxy.endpoint())
        .env_remove("AWS_ENDPOINT_URL")
        .env("HOME", data.path())
        .env("AWS_CONFIG_FILE", data.file("config"))
        .env("AWS_ENDPOINT_URL_SSO", format!("http://{portal}"));
    push(&data, &walship).succeeded();
    assert_signed_with(&proxy, "ASIASSO", Some("sso-token"));
}
