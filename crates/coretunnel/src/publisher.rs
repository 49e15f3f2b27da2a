//! Brings what the control thread publishes to the cores: the one place where `control` and `dataplane` meet.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use control::{PodUp, Publish, Receipt};
use dataplane::{Cores, PodError, Retired};
use hbone::{credential::Credential, revocation::Revocations};
use inpod::pod::PodUid;
use mesh_state::{identity::Identity, snapshot::Snapshot};

/// Publishes to the cores.
pub(crate) struct Publisher {
    cores: Rc<RefCell<Cores>>,
}

impl Publisher {
    pub(crate) fn new(cores: Rc<RefCell<Cores>>) -> Self {
        Self { cores }
    }
}

impl Publish for Publisher {
    fn snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.cores.borrow_mut().snapshot(&snapshot);
    }

    fn credential(&mut self, identity: &Identity, credential: Result<Arc<Credential>, Arc<str>>) {
        self.cores.borrow_mut().credential(identity, &credential);
    }

    fn credential_gone(&mut self, identity: &Identity) {
        self.cores.borrow_mut().credential_gone(identity);
    }

    fn revocations(&mut self, revocations: &Arc<Revocations>) {
        self.cores.borrow_mut().revocations(revocations);
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
