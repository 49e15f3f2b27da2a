//! The mesh as the control thread knows it, and its generations as the cores get them.

use std::{sync::Arc, time::Instant};

use mesh_state::{builder::SnapshotBuilder, change::Change, snapshot::Snapshot};

use crate::{Publish, Status, pacer::Pacer};

/// The mesh.
pub(crate) struct Mesh<P> {
    builder: SnapshotBuilder,
    /// The generation published last.
    pub(crate) snapshot: Arc<Snapshot>,
    pacer: Pacer,
    pub(crate) publish: P,
    status: Status,
}

impl<P: Publish> Mesh<P> {
    pub(crate) fn new(publish: P, status: Status, on_demand: bool) -> Self {
        let mut builder = if on_demand { SnapshotBuilder::on_demand() } else { SnapshotBuilder::new() };
        let snapshot = Arc::new(builder.freeze());
        Self { builder, snapshot, pacer: Pacer::default(), publish, status }
    }

    /// The mesh as it was kept. To be told before anything else is.
    pub(crate) fn restore(&mut self, builder: SnapshotBuilder, now: Instant) {
        self.builder = builder;
        self.pacer.changed(now);
    }

    /// Takes changes into account. The cores learn of them when [`Mesh::changed`] has been told and the pace allows.
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.builder.apply(change);
        }
    }

    /// What has been applied belongs together up to here.
    pub(crate) fn changed(&mut self, now: Instant) {
        self.pacer.changed(now);
    }

    /// When the next generation is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.pacer.due()
    }

    /// Publishes the next generation if it is due. Says whether it did.
    pub(crate) fn publish_due(&mut self, now: Instant) -> bool {
        if !self.pacer.is_due(now) {
            return false;
        }
        let begun = Instant::now();
        self.snapshot = Arc::new(self.builder.freeze());
        self.status.set_generation(self.snapshot.generation());
        self.publish.snapshot(self.snapshot.clone());
        tracing::debug!(generation = self.snapshot.generation(), "published");
        self.pacer.published(now, begun.elapsed());
        true
    }
}
