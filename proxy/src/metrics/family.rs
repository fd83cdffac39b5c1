//! What a metric is called, and the way from plain numbers to Prometheus's types.

use prometheus::core::Desc;
use prometheus::proto;
use std::collections::HashMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric's name, help, type and label names.
#[derive(Debug)]
pub(super) struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
}

/// One series: label values, in the order of the family's label names, and a value.
#[derive(Debug)]
pub(super) struct Sample {
    pub labels: Vec<String>,
    pub value: f64,
}

impl Sample {
    pub fn new(labels: &[&str], value: f64) -> Self {
        Self { labels: labels.iter().map(|&l| l.to_owned()).collect(), value }
    }

    pub fn plain(value: f64) -> Self {
        Self { labels: Vec::new(), value }
    }
}

impl Family {
    pub fn desc(&self) -> prometheus::Result<Desc> {
        let labels = self.labels.iter().map(|&l| l.to_owned()).collect();
        Desc::new(self.name.to_owned(), self.help.to_owned(), labels, HashMap::new())
    }

    /// A counter or gauge with these series.
    pub fn collect(&self, samples: impl IntoIterator<Item = Sample>) -> proto::MetricFamily {
        let metrics = samples.into_iter().map(|s| self.metric(&s)).collect();
        self.family(metrics)
    }

    /// A histogram with one series without labels. `buckets` are not cumulative; the last one has
    /// no upper bound.
    pub fn collect_histogram(
        &self,
        bounds: &[f64],
        buckets: &[u64],
        sum: f64,
    ) -> proto::MetricFamily {
        debug_assert_eq!(bounds.len() + 1, buckets.len());
        let mut seen = 0;
        let cumulative = bounds.iter().zip(buckets).map(|(&bound, &n)| {
            seen += n;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(seen);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(cumulative.collect());
        histogram.set_sample_count(buckets.iter().sum());
        histogram.set_sample_sum(sum);
        let mut metric = proto::Metric::default();
        metric.set_histogram(histogram);
        self.family(vec![metric])
    }

    fn family(&self, metrics: Vec<proto::Metric>) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(match self.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(metrics);
        family
    }

    fn metric(&self, sample: &Sample) -> proto::Metric {
        debug_assert_eq!(self.labels.len(), sample.labels.len(), "{}", self.name);
        let pairs = self.labels.iter().zip(&sample.labels).map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.clone());
            pair
        });
        let mut metric = proto::Metric::from_label(pairs.collect());
        if self.kind == Kind::Counter {
            let mut counter = proto::Counter::default();
            counter.set_value(sample.value);
            metric.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(sample.value);
            metric.set_gauge(gauge);
        }
        metric
    }
}
