//! `wait`: the fence.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use cdsync_core::coordinator::{FenceStart, FenceVerdict, Laggard};
use cdsync_core::ids::{Label, ServerId};
use cdsync_core::wire::{Answer, Ask, FenceAnswer};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::answers::ApiError;
use super::servers::label;
use super::types::{LaggardStatus, Waited};
use crate::shared::Shared;

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long one question for a fence may take; then it is asked again, while there is time.
const ASK_DEADLINE: Duration = Duration::from_secs(30);

/// Between two questions that failed.
const ASK_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
pub(super) struct WaitQuery {
    timeout_ms: Option<u64>,
}

pub(super) async fn wait(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<Waited>, ApiError> {
    let name = label(&name)?;
    let timeout = query
        .timeout_ms
        .map_or(TIMEOUT_DEFAULT, Duration::from_millis)
        .min(TIMEOUT_MAX);
    let started = Instant::now();
    let fence = Fence {
        shared: &shared,
        name,
        deadline: started + timeout,
    };
    let (outcome, seq) = fence.reach().await?;
    let (done, hopeless, laggards) = match outcome {
        FenceVerdict::Done => (true, false, Vec::new()),
        FenceVerdict::Never(laggards) => (false, true, laggards),
        FenceVerdict::Waiting(laggards) | FenceVerdict::Again(laggards) => (false, false, laggards),
        FenceVerdict::Restart => {
            let why = "the source's ledger was made anew meanwhile".to_owned();
            let laggard = Laggard {
                server: None,
                state: None,
                why,
                pending_changes: 0,
                paths: Vec::new(),
            };
            (false, false, vec![laggard])
        }
    };
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let laggards = laggards.into_iter().map(Into::into).collect();
    Ok(Json(Waited {
        done,
        hopeless,
        seq,
        elapsed_ms,
        laggards,
    }))
}

impl From<Laggard> for LaggardStatus {
    fn from(laggard: Laggard) -> Self {
        Self {
            server: laggard.server,
            state: laggard.state.map(|state| state.to_string()),
            why: laggard.why,
            pending_changes: laggard.pending_changes,
            paths: laggard.paths,
        }
    }
}

/// One fence on its way.
struct Fence<'a> {
    shared: &'a Shared,
    name: Label,
    deadline: Instant,
}

/// What the first half of a fence came to.
enum Begun {
    Numbered(FenceAnswer),
    Ended(FenceVerdict),
}

impl Fence<'_> {
    /// The last verdict before the deadline, and the number that was to be reached.
    async fn reach(&self) -> Result<(FenceVerdict, Option<u64>), ApiError> {
        let mut before = None;
        loop {
            let answer = match self.begin().await? {
                Begun::Numbered(answer) => answer,
                Begun::Ended(verdict @ FenceVerdict::Waiting(_)) => {
                    // What the fence before came to says more than that there was no other one.
                    return Ok(before.unwrap_or((verdict, None)));
                }
                Begun::Ended(verdict) => return Ok((verdict, None)),
            };
            let verdict = self.follow(&answer).await?;
            let again = matches!(verdict, FenceVerdict::Restart | FenceVerdict::Again(_));
            // The report or the answer is of a ledger that is gone, or of files that were being
            // written: give the newer one time.
            let next = Instant::now() + ASK_PAUSE;
            let reached = (verdict, Some(answer.seq.0));
            if !again || next >= self.deadline {
                return Ok(reached);
            }
            before = Some(reached);
            sleep_until(next).await;
        }
    }

    /// Gets the number that everything up to now has at the source.
    async fn begin(&self) -> Result<Begun, ApiError> {
        let mut news = self.shared.news();
        loop {
            news.mark_unchanged();
            let (id, start) = self.shared.read(|plan| {
                plan.job(&self.name)
                    .map(|job| (job.id, plan.start_fence(job)))
            })?;
            let laggard = match start {
                FenceStart::Run(answer) => return Ok(Begun::Numbered(answer)),
                FenceStart::Never(laggard) => {
                    return Ok(Begun::Ended(FenceVerdict::Never(vec![laggard])));
                }
                FenceStart::Ask(server) => {
                    let ask = Ask::Fence { job: id };
                    match self.ask(server, ask).await {
                        Ok(answer) => return Ok(Begun::Numbered(answer)),
                        Err(why) => {
                            // The source may be between two states: it is asked again.
                            sleep_until((Instant::now() + ASK_PAUSE).min(self.deadline)).await;
                            self.source_laggard(server, why)
                        }
                    }
                }
                FenceStart::Later(laggard) => {
                    let _ = timeout_at(self.deadline, news.changed()).await;
                    laggard
                }
            };
            if Instant::now() >= self.deadline {
                return Ok(Begun::Ended(FenceVerdict::Waiting(vec![laggard])));
            }
        }
    }

    async fn ask(&self, server: ServerId, ask: Ask) -> Result<FenceAnswer, String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.shared.ask(server, ask, left.min(ASK_DEADLINE)).await? {
            Answer::Fence(answer) => Ok(answer),
            _ => Err("the source answered something else".to_owned()),
        }
    }

    fn source_laggard(&self, server: ServerId, why: String) -> Laggard {
        let server = self
            .shared
            .read(|plan| plan.topology().server(server).map(|s| s.name.clone()));
        let why = format!("the source gave no fence: {why}");
        Laggard {
            server,
            state: None,
            why,
            pending_changes: 0,
            paths: Vec::new(),
        }
    }

    /// Waits until all targets hold what the answer speaks of.
    async fn follow(&self, answer: &FenceAnswer) -> Result<FenceVerdict, ApiError> {
        let mut news = self.shared.news();
        loop {
            news.mark_unchanged();
            let verdict = self.shared.read(|plan| {
                plan.job(&self.name)
                    .map(|job| plan.evaluate_fence(job, answer))
            })?;
            if !matches!(verdict, FenceVerdict::Waiting(_))
                || timeout_at(self.deadline, news.changed()).await.is_err()
            {
                return Ok(verdict);
            }
        }
    }
}
