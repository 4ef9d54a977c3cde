//! Metrics as Prometheus reads them.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
pub use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use serde::Serialize;

use crate::error::{Error, Result};

/// A metric with the samples of one moment.
#[derive(Debug, Clone)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Labels, f64)>,
}

/// Names and values.
pub type Labels = Vec<(&'static str, String)>;

impl Family {
    /// A value that goes up and down.
    #[must_use]
    pub fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Gauge)
    }

    /// A value that only grows; `_total` is added to its name.
    #[must_use]
    pub fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Counter)
    }

    /// A value that only grows, under a name that others gave it without `_total`.
    #[must_use]
    pub fn untyped(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, MetricType::Unknown)
    }

    fn new(name: &'static str, help: &'static str, kind: MetricType) -> Self {
        Self {
            name,
            help,
            kind,
            samples: Vec::new(),
        }
    }

    /// Adds a sample.
    pub fn push(&mut self, labels: Labels, value: f64) {
        self.samples.push((labels, value));
    }

    /// With one sample without labels, if there is a value.
    #[must_use]
    pub fn of(mut self, value: Option<f64>) -> Self {
        self.samples.extend(value.map(|value| (Labels::new(), value)));
        self
    }

    /// With these samples.
    #[must_use]
    pub fn with(mut self, samples: impl IntoIterator<Item = (Labels, f64)>) -> Self {
        self.samples.extend(samples);
        self
    }
}

/// Families that are replaced as a whole while others read them. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Vec<Family>>>);

impl Board {
    /// Replaces what stood there.
    pub fn put(&self, families: Vec<Family>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = families;
    }
}

impl Collector for Board {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for family in families.iter().filter(|family| !family.samples.is_empty()) {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (labels, value) in &family.samples {
                let mut sample = metric.encode_family(labels)?;
                match family.kind {
                    MetricType::Counter => sample.encode_counter::<NoLabelSet, f64, f64>(value, None)?,
                    _ => sample.encode_gauge(value)?,
                }
            }
        }
        Ok(())
    }
}

/// 1 for what is so, 0 for what is not.
#[must_use]
pub fn truth(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// A value of an enum as JSON has it, for a label.
#[must_use]
pub fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.as_ref()
        .and_then(|word| word.as_str())
        .unwrap_or_default()
        .to_owned()
}

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, version 0.0.4, which everyone reads, node_exporter's textfile collector too.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a client asks for (`Accept`, RFC 9110, section 12.5.1).
    #[must_use]
    pub fn asked_for(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// As HTTP names it.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes all that is registered.
    ///
    /// # Errors
    /// `Internal` for what cannot be written, which is a defect.
    pub fn write(self, registry: &Registry) -> Result<String> {
        let mut written = String::new();
        let done = match self {
            Self::Text => prometheus_text::encode(&mut written, registry),
            Self::OpenMetrics => text::encode(&mut written, registry),
        };
        done.map_err(|error| Error::defect("write metrics", error))?;
        Ok(written)
    }
}
