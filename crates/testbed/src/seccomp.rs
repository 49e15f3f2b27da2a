//! A seccomp filter as container runtimes apply it: io_uring does not exist for whoever is under it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// The three system calls of io_uring. Their numbers are the same on every architecture.
const IO_URING: [i64; 3] = [425, 426, 427];

/// Answers the system calls of io_uring with EPERM, as docker's and containerd's default profiles do.
///
/// # Errors
/// On an architecture that filters are not known for.
pub fn without_io_uring() -> Result<BpfProgram> {
    let rules: BTreeMap<_, _> = IO_URING.into_iter().map(|number| (number, Vec::new())).collect();
    let architecture = std::env::consts::ARCH.try_into().context("no filters for this architecture")?;
    let refused = SeccompAction::Errno(1);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)?;
    Ok(filter.try_into()?)
}
