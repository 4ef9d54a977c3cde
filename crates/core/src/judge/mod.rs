//! Decisions: what an archive is worth, what a recovery replays, what retention keeps, what is wrong with a server.
//! Values in, values out.

pub mod assessment;
pub mod branches;
pub mod catalogue;
pub mod copy_settings;
pub mod damage;
pub mod demands;
pub mod diagnosis;
#[cfg(test)]
mod fixture;
pub mod forks;
pub mod history_picture;
pub mod lineage;
pub mod recovery_plan;
pub mod retention;
pub mod schedule;
pub mod seed_source;
pub mod timeline_chain;
pub mod window;
