"""The loops of published training scripts run under DistributedDataParallel with two processes. They call the losses of
``ltfast.compat`` like their own, and the training matches that with plain implementations of their formulas."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from distributed.harness import run_processes
from ltfast import compat
from ltfast.benchmark.cases import published_dscl, published_proco

COUNTS = [12, 8, 4]
WIDTH = 128  # the authors' Bessel recurrence needs many dimensions
QUEUE = 32


class Views(Dataset):
    """Several views of each image in a list, as in the data sets of the scripts."""

    def __init__(self, views, labels):
        self.views, self.labels = views, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return [view[index] for view in self.views], self.labels[index]


def loader_of(views, labels):
    data = Views(views, labels)
    sampler = DistributedSampler(data)
    return sampler, DataLoader(data, batch_size=4, sampler=sampler, drop_last=True)


class TwoBranches(nn.Module):
    """Normalised features, logits, and the inputs of both heads, as returned by ProCo's network."""

    def __init__(self):
        super().__init__()
        # not ReLU: one sign that rounding turns would make the two runs differ by a hundredth
        self.body = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.GELU())
        self.head, self.classifier = nn.Linear(32, WIDTH), nn.Linear(32, len(COUNTS))

    def forward(self, x):
        x = self.body(x)
        return F.normalize(self.head(x), dim=1), self.classifier(x), x


class PlainLogitAdjust(nn.Module):
    def forward(self, x, target):
        prior = torch.tensor(COUNTS, dtype=x.dtype) / sum(COUNTS)
        return F.cross_entropy(x + prior.log(), target)


class PlainProCo:
    """The authors' estimators and recurrence, on the batches of all processes."""

    def __init__(self):
        self.start = compat.ProCoLoss(WIDTH, num_classes=len(COUNTS)).start.double()
        self.inner = published_proco.Baseline(len(COUNTS), WIDTH, temperature=0.1)
        self.inner.means[1], self.inner.counts[1] = self.start, torch.zeros(len(COUNTS), dtype=torch.float64)

    def _hook_before_epoch(self, epoch, epochs):
        inner = self.inner
        inner.means = [inner.means[1], self.start.clone()]
        inner.counts = [inner.counts[1], torch.zeros(len(COUNTS), dtype=torch.float64)]

    def __call__(self, features, labels, args):
        rows = [torch.empty_like(features) for _ in range(args.world_size)]
        targets = [torch.empty_like(labels) for _ in range(args.world_size)]
        distributed.all_gather(rows, features.detach())
        distributed.all_gather(targets, labels)
        self.inner.update(torch.cat(rows), torch.cat(targets))
        return self.inner.logits(features)


def proco_loop(criterion_ce, criterion_scl, state, views, labels):
    """The loop of ProCo: three views in one batch, one loss per view, clipped gradients."""
    args = SimpleNamespace(world_size=2, alpha=1.0, epochs=3)
    model = TwoBranches().double()
    model.load_state_dict(state)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    sampler, loader = loader_of(views, labels)
    losses = []
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        if hasattr(criterion_scl, "_hook_before_epoch"):
            criterion_scl._hook_before_epoch(epoch, args.epochs)
        for inputs, targets in loader:
            sizes = [len(targets)] * 3
            features, scores, _ = model(torch.cat([inputs[0], inputs[1], inputs[2]], dim=0))
            _, second, third = torch.split(features, sizes, dim=0)
            scores, _, _ = torch.split(scores, sizes, dim=0)
            logits = [criterion_scl(second, targets, args=args), criterion_scl(third, targets, args=args)]
            contrast = (criterion_ce(logits[0], targets) + criterion_ce(logits[1], targets)) / 2
            loss = criterion_ce(scores, targets) + args.alpha * contrast
            losses.append(loss.item())
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return losses, model.module.state_dict()


class MomentumContrast(nn.Module):
    """A small version of DSCL's network: two encoders, and a queue with one key per column and the labels in a row."""

    def __init__(self, contrast, distillation):
        super().__init__()
        self.encoder_q, self.encoder_k = (nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in "qk")
        self.contrastive_loss, self.distillation_loss = contrast, distillation
        self.register_buffer("queue", torch.empty(8, QUEUE))
        self.register_buffer("main_label_queue", torch.empty(1, QUEUE, dtype=torch.int64))
        self.at = 0

    def forward(self, im_q, im_k, patches, main_labels):
        q = F.normalize(self.encoder_q(im_q), dim=1)
        small = [F.normalize(self.encoder_q(patch), dim=1) for patch in patches]
        pooled = [F.normalize(self.encoder_q(im_q + patch), dim=1) for patch in patches]
        with torch.no_grad():
            for slow, fast in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
                slow.copy_(0.9 * slow + 0.1 * fast)
            k = F.normalize(self.encoder_k(im_k), dim=1)
        features = torch.cat((q, k, self.queue.T.clone().detach()), dim=0)
        target = torch.cat((main_labels, main_labels, self.main_label_queue.squeeze(0).clone().detach()), dim=0)
        contrast = self.contrastive_loss(features, target)
        distillation = self.distillation_loss(pooled, small, k, self.queue, main_labels, self.main_label_queue)
        keys = [torch.empty_like(k) for _ in range(2)]
        labels = [torch.empty_like(main_labels) for _ in range(2)]
        distributed.all_gather(keys, k)
        distributed.all_gather(labels, main_labels)
        places = slice(self.at, self.at + 2 * len(k))
        self.queue[:, places] = torch.cat(keys).T
        self.main_label_queue[:, places] = torch.cat(labels)
        self.at = places.stop % QUEUE
        return contrast, distillation


def plain_dscl(features, labels):
    batch = (len(features) - QUEUE) // 2
    q, k, queue = features.split([batch, batch, QUEUE])
    return published_dscl.dscl(q, k, labels[:batch], queue, labels[2 * batch :], temperature=0.07, beta=6.0).mean()


def plain_pbsd(pooled, cropped, key, queue, main_labels, main_label_queue):
    pairs = zip(pooled, cropped, strict=True)
    losses = [
        published_dscl.pbsd(c[:, None].detach(), s[:, None], key, queue.T.clone(), temperature=0.07) for c, s in pairs
    ]
    return torch.stack([loss.mean() for loss in losses]).mean()


def dscl_loop(contrast, distillation, state, views, labels):
    """The loop of DSCL: two views and patches. Each process computes the loss of its own batch with the common
    queue."""
    model = MomentumContrast(contrast, distillation).double()
    model.load_state_dict(state)
    model.encoder_k.requires_grad_(False)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=5e-4)
    sampler, loader = loader_of(views, labels)
    losses = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        model.train()
        for images, main_labels in loader:
            both = model(im_q=images[0], im_k=images[1], patches=images[2:], main_labels=main_labels)
            loss = both[0] + both[1] * 1.5
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses, model.module.state_dict()


def loops(rank, proco_state, dscl_state, views, labels):
    """Both loops, with the losses of ``ltfast.compat`` and with the plain ones."""
    ours = compat.LogitAdjust(COUNTS), compat.ProCoLoss(contrast_dim=WIDTH, temperature=0.1, num_classes=len(COUNTS))
    queued = (
        compat.DSCLLoss(temperature=0.07, base_temperature=None, K=QUEUE, weighted_beta=6.0),
        compat.PBSDLoss(temperature=0.07, base_temperature=None),
    )
    plain = nn.Module(), nn.Module()
    plain[0].forward, plain[1].forward = plain_dscl, plain_pbsd
    return {
        "proco": [proco_loop(*both, proco_state, views, labels) for both in (ours, (PlainLogitAdjust(), PlainProCo()))],
        "dscl": [dscl_loop(*both, dscl_state, views, labels) for both in (queued, plain)],
    }


@pytest.mark.slow
def test_published_loops():
    print(f"torch.manual_seed({torch.seed()})")  # shown if the test fails
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    centres = torch.randn(3, 10, dtype=torch.float64)
    views = [centres[labels] + torch.randn(len(labels), 10, dtype=torch.float64) for _ in range(4)]
    proco_state = TwoBranches().double().state_dict()
    dscl_state = MomentumContrast(nn.Identity(), nn.Identity()).double().state_dict()
    dscl_state["queue"] = F.normalize(torch.randn(8, QUEUE, dtype=torch.float64), dim=0)
    dscl_state["main_label_queue"] = torch.randint(3, (1, QUEUE))
    results = run_processes(loops, 2, proco_state, dscl_state, views, labels)
    for name, tolerance in (("proco", 1e-4), ("dscl", 1e-9)):  # ProCo's statistics are float32
        for (ours, our_state), (plain, plain_state) in (result[name] for result in results):
            assert len(ours) >= 6
            torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance, msg=name)
            torch.testing.assert_close(our_state, plain_state, rtol=tolerance, atol=tolerance)
        assert results[0][name][0][0] != results[1][name][0][0]  # each process had its own part
