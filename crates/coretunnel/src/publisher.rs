//! Brings what the control thread publishes to the cores: the one place where `control` and `dataplane` meet.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use control::{PodUp, Publish, Receipt};
use dataplane::{Cores, PodError, Retired};
use hbone::{credential::Credential, revocation::Revocations};
use inpod::pod::PodUid;
use mesh_state::{identity::Identity, snapshot::Snapshot};

/// How long a core whose mailbox was full is left to work on it.
const SETTLE_AFTER: Duration = Duration::from_millis(100);

/// Publishes to the cores.
pub(crate) struct Publisher {
    cores: Rc<RefCell<Cores>>,
    /// A task is at it to send what found a mailbox full.
    settling: Rc<Cell<bool>>,
}

impl Publisher {
    pub(crate) fn new(cores: Rc<RefCell<Cores>>) -> Self {
        Self { cores, settling: Rc::default() }
    }

    /// What found a mailbox full is sent when there is room, whether or not anything more is published.
    fn settle(&self) {
        if self.cores.borrow_mut().settle() || self.settling.replace(true) {
            return;
        }
        let (cores, settling) = (self.cores.clone(), self.settling.clone());
        tokio::task::spawn_local(async move {
            while !cores.borrow_mut().settle() {
                tokio::time::sleep(SETTLE_AFTER).await;
            }
            settling.set(false);
        });
    }
}

impl Publish for Publisher {
    fn snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.cores.borrow_mut().snapshot(&snapshot);
    }

    fn credential(&mut self, identity: &Identity, credential: Result<Arc<Credential>, Arc<str>>) {
        self.cores.borrow_mut().credential(identity, &credential);
        self.settle();
    }

    fn credential_gone(&mut self, identity: &Identity) {
        self.cores.borrow_mut().credential_gone(identity);
        self.settle();
    }

    fn revocations(&mut self, revocations: &Arc<Revocations>) {
        self.cores.borrow_mut().revocations(revocations);
        self.settle();
    }

    fn pod_up(&mut self, pod: PodUp) -> Receipt {
        let PodUp { uid, info, netns } = pod;
        receipt(self.cores.borrow_mut().pod_up(uid, info, netns))
    }

    fn pod_down(&mut self, uid: &PodUid) -> Receipt {
        receipt(self.cores.borrow_mut().pod_down(uid))
    }
}

fn receipt(outcome: async_channel::Receiver<Result<(), PodError>>) -> Receipt {
    Box::pin(async move {
        match outcome.recv().await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err("the pod's core ended before it answered".to_owned()),
        }
    })
}

/// Frees replaced snapshots as they come home, and sends on what a core has missed meanwhile. Ends with the cores.
pub(crate) async fn retire(cores: Rc<RefCell<Cores>>, home: async_channel::Receiver<Retired>) {
    while let Ok(retired) = home.recv().await {
        cores.borrow_mut().came_home(retired);
    }
}
