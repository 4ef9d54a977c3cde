//! The startup message and the authentication that follows.
//!
//! A server that reports success half-way through SCRAM has not proved that it knows the password, and is refused. Over
//! TLS the exchange is bound to the server's certificate where both sides can, so that nobody between them can relay
//! it.

use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::server_error::{Login, ServerError};
use super::stream::Stream;
use super::wire::Wire;
use crate::error::{Error, Result};
use crate::server::conninfo::{
    ChannelBindingMode, ConnInfo, Host, PGBOUNCER_CONSOLE, Password, Session, passfile,
};
use crate::server::x509::Certificate;

/// Why a login failed.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Another encryption may succeed: `pg_hba.conf` refused this one, or the handshake failed.
    pub(super) may_differ: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            error,
            may_differ: false,
        }
    }
}

/// Logs in. Returns at `AuthenticationOk`, and whether a password was asked for.
pub(super) async fn log_in(
    wire: &mut Wire<Stream>,
    info: &ConnInfo,
    host: &Host,
) -> std::result::Result<bool, Refusal> {
    let limit = info.connect_timeout;
    wire.send(&startup(info)?, limit).await?;
    let mut exchange = Exchange {
        wire,
        info,
        host,
        limit,
        scram: Scram::NotAsked,
        used_password: false,
    };
    loop {
        match exchange.wire.receive(limit).await? {
            Message::ErrorResponse(body) => {
                let error = ServerError::read(body.fields());
                return Err(refusal(&error, exchange.wire, info));
            }
            Message::NoticeResponse(body) => ServerError::read(body.fields()).log(exchange.wire.peer()),
            Message::AuthenticationOk => {
                exchange.check_complete()?;
                return Ok(exchange.used_password);
            }
            message => exchange.answer(message).await?,
        }
    }
}

/// The error of a login that the server ended with an `ErrorResponse`.
pub(super) fn refusal(error: &ServerError, wire: &Wire<Stream>, info: &ConnInfo) -> Refusal {
    let login = Login {
        peer: wire.peer(),
        user: &info.user,
        session: &info.session,
        address: wire.stream().local_address(),
    };
    Refusal {
        error: error.of_login(&login),
        may_differ: error.is_refused_by_hba(),
    }
}

fn startup(info: &ConnInfo) -> Result<BytesMut> {
    let mut parameters = vec![
        ("user", info.user.as_str()),
        ("application_name", &info.application_name),
        ("client_encoding", "UTF8"),
    ];
    match &info.session {
        Session::Replication => parameters.push(("replication", "true")),
        // It refuses parameters that it does not know.
        Session::PgbouncerConsole => parameters.push(("database", PGBOUNCER_CONSOLE)),
        // With the system's schema only, no function or operator that a user made can replace PostgreSQL's.
        Session::Database(name) => {
            parameters.push(("database", name.as_str()));
            if !info.own_search_path {
                parameters.push(("search_path", ""));
            }
        }
    }
    if let Some(options) = &info.options {
        parameters.push(("options", options));
    }
    let mut message = BytesMut::new();
    frontend::startup_message(parameters, &mut message).map_err(|_| {
        Error::invalid("user, dbname, application_name or options contains a zero byte; remove it")
    })?;
    Ok(message)
}

enum Scram {
    NotAsked,
    Going(Box<ScramSha256>, Bound),
    Verified(Bound),
}

/// Whether an exchange is tied to the TLS connection.
type Bound = bool;

struct Exchange<'a> {
    wire: &'a mut Wire<Stream>,
    info: &'a ConnInfo,
    host: &'a Host,
    limit: Duration,
    scram: Scram,
    used_password: bool,
}

impl Exchange<'_> {
    async fn answer(&mut self, message: Message) -> Result<()> {
        self.used_password = true;
        match message {
            Message::AuthenticationCleartextPassword => {
                self.check_binding_possible()?;
                let password = self.password()?.to_owned();
                self.send_password(password.as_bytes()).await
            }
            Message::AuthenticationMd5Password(body) => {
                self.check_binding_possible()?;
                let user = self.info.user.as_bytes();
                let hash = md5_hash(user, self.password()?.as_bytes(), body.salt());
                self.send_password(hash.as_bytes()).await
            }
            Message::AuthenticationSasl(body) => self.start_scram(&body).await,
            Message::AuthenticationSaslContinue(body) => self.continue_scram(body.data()).await,
            Message::AuthenticationSaslFinal(body) => self.finish_scram(body.data()),
            Message::AuthenticationGss
            | Message::AuthenticationGssContinue(_)
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential
            | Message::AuthenticationSspi => Err(Error::denied(format!(
                "{} asks for Kerberos, GSSAPI or SSPI, which walship does not support; give {} a line with scram-sha-256 or cert in pg_hba.conf",
                self.wire.peer(),
                self.info.user
            ))),
            _ => Err(self.wire.garbled("a message out of place during the login")),
        }
    }

    fn password(&self) -> Result<&str> {
        let password = self.host.password.as_ref().map(Password::expose);
        password.ok_or_else(|| {
            Error::denied(format!(
                "{} asks for a password and there is none for {}; set PGPASSWORD, or add the line \
                 \"{}:{}:{}:{}:<password>\" to ~/.pgpass (mode 0600)",
                self.wire.peer(),
                self.info.user,
                passfile::escape(&self.host.passfile_name()),
                self.host.port,
                passfile::escape(self.info.session.passfile_database()),
                passfile::escape(&self.info.user),
            ))
        })
    }

    async fn send_password(&mut self, password: &[u8]) -> Result<()> {
        let mut message = BytesMut::new();
        frontend::password_message(password, &mut message)
            .map_err(|_| Error::invalid("the password contains a zero byte; correct it"))?;
        self.wire.send(&message, self.limit).await
    }

    async fn start_scram(&mut self, body: &AuthenticationSaslBody) -> Result<()> {
        let offered = |wanted: &str| {
            let mut mechanisms = body.mechanisms();
            mechanisms
                .any(|mechanism| Ok(mechanism == wanted))
                .unwrap_or(false)
        };
        let plus = offered(SCRAM_SHA_256_PLUS) && self.info.channel_binding != ChannelBindingMode::Disable;
        let end_point = self.wire.stream().server_certificate().filter(|_| plus);
        let end_point = end_point.and_then(|der| Certificate::parse(der)?.end_point_hash());
        let (mechanism, binding, bound) = match end_point {
            Some(hash) => (
                SCRAM_SHA_256_PLUS,
                ChannelBinding::tls_server_end_point(hash),
                true,
            ),
            None if offered(SCRAM_SHA_256) => {
                self.check_binding_possible()?;
                // "I could, but you do not offer it": the server refuses if it did offer it, because
                // then somebody between them removed it from the list.
                let able =
                    self.wire.stream().is_tls() && self.info.channel_binding != ChannelBindingMode::Disable;
                let binding = if able && !plus {
                    ChannelBinding::unrequested()
                } else {
                    ChannelBinding::unsupported()
                };
                (SCRAM_SHA_256, binding, false)
            }
            None => {
                return Err(Error::denied(format!(
                    "{} offers no way to log in that walship knows; it knows trust, peer, cert, password, md5 and scram-sha-256",
                    self.wire.peer()
                )));
            }
        };
        let scram = ScramSha256::new(self.password()?.as_bytes(), binding);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut message)
            .map_err(|error| Error::internal(format!("encode the login: {error}")))?;
        self.scram = Scram::Going(Box::new(scram), bound);
        self.wire.send(&message, self.limit).await
    }

    async fn continue_scram(&mut self, data: &[u8]) -> Result<()> {
        let Scram::Going(scram, _) = &mut self.scram else {
            return Err(self.wire.garbled("SCRAM that nobody started"));
        };
        scram
            .update(data)
            .map_err(|error| self.wire.garbled(&format!("SCRAM: {error}")))?;
        let mut message = BytesMut::new();
        frontend::sasl_response(scram.message(), &mut message)
            .map_err(|error| Error::internal(format!("encode the login: {error}")))?;
        self.wire.send(&message, self.limit).await
    }

    fn finish_scram(&mut self, data: &[u8]) -> Result<()> {
        let Scram::Going(scram, bound) = &mut self.scram else {
            return Err(self.wire.garbled("the end of SCRAM that nobody started"));
        };
        let (proved, bound) = (scram.finish(data).is_ok(), *bound);
        if !proved {
            return Err(self.impostor());
        }
        self.scram = Scram::Verified(bound);
        Ok(())
    }

    fn check_complete(&self) -> Result<()> {
        let required = self.info.channel_binding == ChannelBindingMode::Require;
        match &self.scram {
            Scram::Going(..) => Err(self.impostor()),
            Scram::Verified(true) => Ok(()),
            _ if required => Err(self.unbound()),
            _ => Ok(()),
        }
    }

    /// Called before a password leaves this process in a form that is not bound to the connection.
    fn check_binding_possible(&self) -> Result<()> {
        if self.info.channel_binding == ChannelBindingMode::Require {
            return Err(self.unbound());
        }
        Ok(())
    }

    fn unbound(&self) -> Error {
        Error::denied(format!(
            "channel_binding=require, but {} does not bind the login to the TLS connection; use TLS and scram-sha-256, or set channel_binding=prefer",
            self.wire.peer()
        ))
    }

    fn impostor(&self) -> Error {
        Error::denied(format!(
            "{} does not prove that it knows the password of {}; check that this is the right server: somebody may stand in its place",
            self.wire.peer(),
            self.info.user
        ))
    }
}
