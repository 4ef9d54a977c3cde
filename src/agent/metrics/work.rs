//! What the agent, and the commands beside it, have done: counted as it happens.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::edge::exposition::{Labels, word};
use crate::error::ErrorKind;
use crate::store::Observer;
use walship_client::protocol::What;

/// In seconds: from a file that the agent has stored ahead to one that waits for a slow store.
const BUCKETS: [f64; 13] = [
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Clones share the counters.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Work {
    push: Done,
    restore: Done,
    requests: Family<Labels, Counter>,
    request_durations: Family<Labels, Histogram, fn() -> Histogram>,
}

/// How often, how long, and with which failures.
#[derive(Debug, Clone)]
struct Done {
    duration: Histogram,
    failures: Family<Labels, Counter>,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Work {
    pub(in crate::agent) fn new() -> Self {
        let done = || Done {
            duration: histogram(),
            failures: Family::default(),
        };
        Self {
            push: done(),
            restore: done(),
            requests: Family::default(),
            request_durations: Family::new_with_constructor(histogram),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, done) in [("push", &self.push), ("restore", &self.restore)] {
            registry.register(
                format!("walship_{name}_duration_seconds"),
                format!("How long PostgreSQL waited for a {name} that succeeded"),
                done.duration.clone(),
            );
            registry.register(
                format!("walship_{name}_failures"),
                format!("Calls of {name} that failed, by kind"),
                done.failures.clone(),
            );
        }
        registry.register(
            "walship_store_requests",
            "Requests to the store, their repetitions not counted",
            self.requests.clone(),
        );
        registry.register(
            "walship_store_request_duration_seconds",
            "Time until the store answered",
            self.request_durations.clone(),
        );
    }

    /// Counts a call of PostgreSQL's, by whomever it was answered.
    pub(in crate::agent) fn count(&self, what: What, took: Duration, failure: Option<ErrorKind>) {
        let done = match what {
            What::Push => &self.push,
            What::Restore => &self.restore,
        };
        match failure {
            None => done.duration.observe(took.as_secs_f64()),
            Some(kind) => drop(done.failures.get_or_create(&vec![("kind", word(&kind))]).inc()),
        }
    }

    /// For the store's meter.
    pub(in crate::agent) fn observer(&self) -> Arc<dyn Observer> {
        Arc::new(self.clone())
    }
}

impl Observer for Work {
    fn answered(&self, operation: &'static str, failure: Option<ErrorKind>, took: Duration) {
        let outcome = failure.map_or_else(|| "ok".to_owned(), |kind| word(&kind));
        let operation = ("operation", operation.to_owned());
        let labels = vec![operation.clone(), ("outcome", outcome)];
        self.requests.get_or_create(&labels).inc();
        let durations = self.request_durations.get_or_create(&vec![operation]);
        durations.observe(took.as_secs_f64());
    }
}
