//! `walship agent`: the optional long-lived process beside PostgreSQL.
//!
//! It holds warm connections, stores WAL ahead of the archiver and fetches it ahead of recovery.
//! It also runs the jobs of its schedule, each a process of its own (`schedule.rs`).
//! `push` and `restore` ask it over a Unix socket. They do the work themselves if there is no agent, or if it does not
//! answer in a short time. The same code does the work in both cases.
//!
//! What holds:
//! - Everything that it knows is in its memory, and is checked against the file in question. Losing it does no harm:
//!   pushing again is idempotent, and a spool without its agent is never read.
//! - Files are stored in the archiver's order: each only after the one before it is durable. So two
//!   live clones of one primary cannot interleave their histories, just as without an agent.
//! - It never touches a destination of `restore`: the client renames the verified file itself, so an
//!   agent that hangs and wakes up later changes nothing.
//! - Only processes of the same user are answered, and only an agent of the same user is believed.

mod archiver;
mod args;
mod detach;
mod known_archive;
mod life;
mod metrics;
mod prefetch;
mod schedule;
mod server;
mod spool;

pub use args::AgentArgs;
use detach::detach;
use server::{AgentOptions, run};
