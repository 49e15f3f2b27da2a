//! Where certificates come from, and when they are renewed.

pub mod embedded;
