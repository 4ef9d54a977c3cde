//! A script of several statements, sent as one message: the server splits it.

use bytes::Bytes;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{Message, RowDescriptionBody};

use super::Connection;
use crate::error::{Error, Result};

/// The OID of the type `boolean` (`pg_type.dat`).
const BOOLEAN: u32 = 16;

/// The answer to a statement of a script, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptEvent {
    /// Rows follow.
    Columns {
        /// Whether the first column is of type `boolean`.
        first_is_boolean: bool,
    },
    Row {
        /// The first column as text; NULL is none.
        first: Option<Bytes>,
    },
    /// The statement is done; `CREATE TABLE` or `SELECT 7`.
    Done(String),
}

impl Connection {
    /// Runs all statements of a script and passes every answer to `each`. Unless the script says otherwise, all of it
    /// is one transaction. `what` names the script in messages.
    ///
    /// # Errors
    /// As [`Connection::simple_query`], for the first statement that fails; `Invalid` for a `COPY` from or to
    /// the client.
    pub async fn script(
        &mut self,
        what: &str,
        script: &str,
        mut each: impl FnMut(ScriptEvent),
    ) -> Result<()> {
        self.send_command(script).await?;
        let mut failure = None;
        loop {
            let message = match self.receive(self.idle_timeout()).await {
                Ok(message) => message,
                Err(broken) => return Err(failure.unwrap_or(broken)),
            };
            match message {
                Message::RowDescription(body) => each(self.columns(&body)?),
                Message::DataRow(row) => each(ScriptEvent::Row {
                    first: self.values(&row)?.into_iter().next().flatten(),
                }),
                Message::CommandComplete(body) => {
                    let tag = body
                        .tag()
                        .map_err(|_| self.garbled("an unreadable command tag"))?;
                    each(ScriptEvent::Done(tag.to_owned()));
                }
                Message::EmptyQueryResponse => {}
                Message::ErrorResponse(body) => failure = Some(self.failure(&body, what)),
                Message::CopyInResponse(_) | Message::CopyOutResponse(_) => {
                    return Err(Error::invalid(format!(
                        "{what}: a COPY from STDIN or to STDOUT cannot be part of it"
                    )));
                }
                Message::ReadyForQuery(_) => break,
                _ => return Err(self.garbled("a message out of place in an answer")),
            }
        }
        self.ready = true;
        failure.map_or(Ok(()), Err)
    }

    fn columns(&self, body: &RowDescriptionBody) -> Result<ScriptEvent> {
        let first = body
            .fields()
            .next()
            .map_err(|_| self.garbled("unreadable columns"))?;
        Ok(ScriptEvent::Columns {
            first_is_boolean: first.is_some_and(|field| field.type_oid() == BOOLEAN),
        })
    }
}
