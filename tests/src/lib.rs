//! The lab and helpers of the end-to-end tests.
