//! What the parts of a running master share: the coordinator, who is connected, the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cdsync_core::coordinator::{Coordinator, Job};
use cdsync_core::ids::{JobId, ServerId};
use cdsync_core::time::WallMillis;
use cdsync_core::topology::Server;
use cdsync_core::wire::{Answer, Ask, Signed};
use cdsync_transport::{CertificateAuthority, CloseCode, Connection};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::store::rows;
use crate::{MasterError, Store, StoreError};

/// A question on its way to an agent, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) ask: Ask,
    pub(crate) answer: oneshot::Sender<Result<Answer, String>>,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum AskError {
    #[error("it is not connected to the master")]
    NotConnected,
    #[error("it has too many questions before it")]
    Busy,
    #[error("it did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("its connection ended before it answered")]
    Ended,
    #[error("{0}")]
    Refused(String),
}

/// A connected agent.
#[derive(Debug)]
pub(crate) struct Live {
    /// Tells this connection from others of the same server.
    pub(crate) generation: u64,
    pub(crate) connection: Arc<dyn Connection>,
    /// The newest orders: a slow agent skips those in between.
    pub(crate) orders: watch::Sender<Option<Signed>>,
    pub(crate) questions: mpsc::Sender<Question>,
}

/// The plan and those that it is sent to, under one lock, so that orders never overtake each other.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) coordinator: Coordinator,
    pub(crate) live: HashMap<ServerId, Live>,
}

/// What the parts of a running master share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    store: Arc<dyn Store>,
    /// Held while something is changed: first stored, then told to the coordinator.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Rises whenever something may have become true that somebody waits for.
    news: watch::Sender<u64>,
    pub(crate) authority: CertificateAuthority,
    pub(crate) facts: Facts,
}

/// What does not change while a master runs.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Where agents dial it.
    pub(crate) advertise: String,
    /// Where the API listens.
    pub(crate) http: String,
    pub(crate) owner: [u8; 32],
    pub(crate) orders_key: cdsync_core::wire::VerifyingKey,
    pub(crate) started: WallMillis,
}

/// The wall clock.
pub(crate) fn now() -> WallMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Shared {
    pub(crate) fn new(
        coordinator: Coordinator,
        store: Arc<dyn Store>,
        authority: CertificateAuthority,
        facts: Facts,
    ) -> Self {
        Self {
            state: Mutex::new(State {
                coordinator,
                live: HashMap::new(),
            }),
            store,
            changing: tokio::sync::Mutex::new(()),
            news: watch::Sender::new(0),
            authority,
            facts,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the plan.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Coordinator) -> T) -> T {
        look(&self.lock().coordinator)
    }

    /// Gives the plan an input, and hands out the orders that follow from it.
    pub(crate) fn input<T>(&self, input: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = input(&mut state);
        let State { coordinator, live } = &mut *state;
        while let Some(next) = coordinator.poll_orders(now()) {
            if let Some(live) = live.get(&next.server) {
                live.orders.send_replace(Some(next.orders));
            }
        }
        drop(state);
        self.news
            .send_modify(|count| *count = count.wrapping_add(1));
        result
    }

    /// Tells when something happened; take it before looking, then wait on it.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Runs blocking work on the store.
    pub(crate) async fn store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || work(&*store)).await;
        done.unwrap_or_else(|error| Err(StoreError::Database(error.to_string())))
    }

    /// Stores a job, then plans with it. The caller holds `changing`.
    pub(crate) async fn put_job(&self, job: Job) -> Result<(), StoreError> {
        let row = job.clone();
        self.store(move |store| rows::put_job(store, &row)).await?;
        self.input(|state| state.coordinator.handle_job(job));
        Ok(())
    }

    /// Removes a job. The caller holds `changing`.
    pub(crate) async fn remove_job(&self, id: JobId) -> Result<(), StoreError> {
        self.store(move |store| rows::remove_job(store, id)).await?;
        self.input(|state| state.coordinator.handle_job_removed(id));
        Ok(())
    }

    /// Removes a server for good and ends its connection. The caller holds `changing`.
    pub(crate) async fn remove_server(&self, id: ServerId) -> Result<(), StoreError> {
        self.store(move |store| rows::revoke_server(store, id, now()))
            .await?;
        let live = self.input(|state| {
            state.coordinator.handle_removed(id, now());
            state.live.remove(&id)
        });
        if let Some(live) = live {
            live.connection.close(CloseCode::REFUSED, REMOVED);
        }
        Ok(())
    }

    /// Rules from now on although agents obey a later master, whose copy this one is. `None`: they
    /// do not. The caller holds `changing`.
    pub(crate) async fn accept_restore(&self) -> Result<Option<u64>, StoreError> {
        let Some(outranked) = self.read(|plan| plan.outranked().cloned()) else {
            return Ok(None);
        };
        let term = self
            .store(move |store| {
                rows::accept_restore(store, outranked.term, &outranked.revoked, now())
            })
            .await?;
        self.input(|state| state.coordinator.handle_restore_accepted(term, now()));
        Ok(Some(term))
    }

    /// Stores what a server newly says of itself.
    pub(crate) async fn keep_server(&self, id: ServerId) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        let server: Option<Server> = self.read(|plan| plan.topology().server(id).cloned());
        match server {
            Some(server) => {
                self.store(move |store| rows::put_server(store, &server))
                    .await
            }
            None => Ok(()),
        }
    }

    /// Asks an agent and waits for its answer.
    pub(crate) async fn ask(
        &self,
        server: ServerId,
        ask: Ask,
        deadline: Duration,
    ) -> Result<Answer, AskError> {
        let (answer, answered) = oneshot::channel();
        {
            let state = self.lock();
            let live = state.live.get(&server).ok_or(AskError::NotConnected)?;
            let sent = live.questions.try_send(Question { ask, answer });
            sent.map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => AskError::Busy,
                mpsc::error::TrySendError::Closed(_) => AskError::Ended,
            })?;
        }
        match tokio::time::timeout(deadline, answered).await {
            Err(_) => Err(AskError::TimedOut(deadline)),
            Ok(Err(_)) => Err(AskError::Ended),
            Ok(Ok(Err(reason))) => Err(AskError::Refused(reason)),
            Ok(Ok(Ok(answer))) => Ok(answer),
        }
    }
}

/// What a removed server is told.
pub(crate) const REMOVED: &str =
    "this server is not (or no longer) a member; next: cdsync master token, then agent join";

impl From<AskError> for String {
    fn from(error: AskError) -> Self {
        error.to_string()
    }
}

/// Blocking work of opening a master, off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MasterError> + Send + 'static,
) -> Result<T, MasterError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(MasterError::Machine {
            detail: error.to_string(),
        })
    })
}
