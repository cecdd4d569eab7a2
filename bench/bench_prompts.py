"""A step of prompt tuning's second phase, forward and backward: prompts as keys and values, with the first blocks
computed once, beside the published formulation: prompts among the tokens, in two whole passes."""

import pytest
import torch

from ltfast.models import PromptedClassifier


@pytest.mark.parametrize("implementation", ["ltfast", "published"])
def test_second_phase(step, device, implementation):
    batch = 256 if device == "cuda" else 16
    model = PromptedClassifier("vit_base_patch16_224", 1000, length=10, group_length=10, group_blocks=6).to(device)
    for parameter in model.transformer.parameters():
        parameter.requires_grad_(False)
    images = torch.randn(batch, 3, 224, 224, device=device)
    transformer, pool, blocks = model.transformer, model.pool, model.transformer.backbone.blocks
    trained = [*pool.parameters(), *model.head.parameters()]

    def features(group):
        tokens = transformer.tokens(images)
        for i, block in enumerate(blocks):
            prompts = [transformer.prompts[i].expand(batch, -1, -1)]
            if group is not None and i >= 6:
                prompts.append(group[:, i - 6])
            joined = torch.cat([*prompts, tokens], 1)
            tokens = block(joined)[:, joined.shape[1] - tokens.shape[1] :]
        return transformer.features(tokens)

    def published():
        with torch.no_grad():
            query = features(None)
        indices, cosines = pool.match(query)
        return model.head(features(pool.select(indices))), indices, cosines

    forward = published if implementation == "published" else lambda: model.grouped(images)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        torch.testing.assert_close(published()[0], model.grouped(images)[0], rtol=1e-3, atol=1e-2)

    def run():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            scores, _, cosines = forward()
        torch.autograd.grad(scores.float().square().sum() + cosines.sum(), trained)

    name = f"LPT phase 2, ViT-B/16, {batch} images, 10 + 10 prompts"
    step(run, group=name, implementation=implementation, moved=0)
