//! Quantiles: exact over stored samples, or from a histogram of fixed size where there are too many to store.

use serde::Serialize;

use super::round3;

/// A distribution of durations, all in milliseconds. With no samples every field is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many samples.
    pub count: u64,
    /// Half of the samples are at most this.
    pub p50: f64,
    /// 90 % of the samples are at most this.
    pub p90: f64,
    /// 99 % of the samples are at most this.
    pub p99: f64,
    /// 99.9 % of the samples are at most this.
    pub p999: f64,
    /// The largest sample.
    pub max: f64,
}

impl Quantiles {
    /// Exact quantiles by nearest rank: the smallest sample that at least q of all samples do not exceed.
    pub fn of_us(mut samples_us: Vec<u32>) -> Quantiles {
        samples_us.sort_unstable();
        Quantiles::by_rank(samples_us.len() as u64, |rank| u64::from(samples_us[rank as usize - 1]))
    }

    /// `sample_us(rank)` gives the sample with that rank, from 1 to `count`.
    fn by_rank(count: u64, sample_us: impl Fn(u64) -> u64) -> Quantiles {
        if count == 0 {
            return Quantiles::default();
        }
        let at = |per_mille: u64| round3(sample_us((count * per_mille).div_ceil(1000).max(1)) as f64 / 1000.0);
        Quantiles { count, p50: at(500), p90: at(900), p99: at(990), p999: at(999), max: at(1000) }
    }
}

/// Counts of durations in buckets whose width is under 1 % of their value; fixed size, recording allocates nothing.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; bucket_of(MAX_US) + 1], count: 0, max_us: 0 }
    }
}

impl Histogram {
    /// Counts one duration, in microseconds; more than 71 minutes counts as 71 minutes.
    pub fn record_us(&mut self, us: u64) {
        let us = us.min(MAX_US);
        self.buckets[bucket_of(us)] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(us);
    }

    /// The distribution so far, each quantile at the upper end of its bucket, and never above the true maximum.
    pub fn quantiles(&self) -> Quantiles {
        Quantiles::by_rank(self.count, |rank| {
            let mut seen = 0;
            let bucket = self.buckets.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            bucket.map_or(self.max_us, |bucket| upper_end_of(bucket).min(self.max_us))
        })
    }
}

/// Below `2^SUB_BITS` one bucket per microsecond; above, `2^SUB_BITS` buckets for each power of two.
fn bucket_of(us: u64) -> usize {
    if us < 1 << SUB_BITS {
        return us as usize;
    }
    let shift = us.ilog2() - SUB_BITS;
    (((shift as usize) + 1) << SUB_BITS) + ((us >> shift) as usize - (1 << SUB_BITS))
}

fn upper_end_of(bucket: usize) -> u64 {
    if bucket < 1 << SUB_BITS {
        return bucket as u64;
    }
    let shift = (bucket >> SUB_BITS) as u32 - 1;
    let lower = ((bucket & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS)) as u64;
    ((lower + 1) << shift) - 1
}

const SUB_BITS: u32 = 7;
const MAX_US: u64 = u32::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank() {
        let q = Quantiles::of_us((1..=1000).map(|ms| ms * 1000).rev().collect());
        assert_eq!((q.p50, q.p90, q.p99, q.p999, q.max), (500.0, 900.0, 990.0, 999.0, 1000.0));
        let few = Quantiles::of_us(vec![5_000, 1_000]);
        assert_eq!((few.count, few.p50, few.p99, few.max), (2, 1.0, 5.0, 5.0));
        assert_eq!(Quantiles::of_us(Vec::new()), Quantiles::default());
    }

    #[test]
    fn a_histogram_agrees_with_exact_quantiles_within_one_percent() {
        let samples: Vec<u32> = (0..100_000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 10).collect();
        let mut histogram = Histogram::default();
        for sample in &samples {
            histogram.record_us(u64::from(*sample));
        }
        let (exact, rough) = (Quantiles::of_us(samples), histogram.quantiles());
        for (e, r) in [(exact.p50, rough.p50), (exact.p99, rough.p99), (exact.p999, rough.p999)] {
            assert!(r >= e && r <= e * 1.01, "exact {e}, histogram {r}");
        }
        assert_eq!(exact.max, rough.max);
    }

    #[test]
    fn every_bucket_ends_where_the_next_begins() {
        for us in (0..5_000).chain((1 << 31) - 5_000..(1 << 31) + 5_000).chain([MAX_US]) {
            let bucket = bucket_of(us);
            assert!(upper_end_of(bucket) >= us, "{us}");
            assert!(bucket == 0 || upper_end_of(bucket - 1) < us, "{us}");
        }
    }
}
