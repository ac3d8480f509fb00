"""TimeSformer (Bertasius et al., arXiv:2102.05095): a ViT with attention over space and time.

Written from the paper and from measured facts; parameter names are those of the published
checkpoints. Dimensions: B clips, T frames, N places (patches of a frame), D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmp.models.backbone import BACKBONES, Backbone, check_at_least, check_choice, check_divides

ATTENTION_TYPES = ("divided_space_time", "space_only", "joint_space_time")
LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02


@BACKBONES.register()
def timesformer(
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    dropout_rate: float = 0.5,
    attention_type: str = "divided_space_time",
    patch_size: int = 16,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    drop_path_rate: float = 0.1,
) -> Backbone:
    """Make a TimeSformer on a ViT; the defaults are the ViT-B of TimeSformer_divST_8x32_224.

    Args:
        num_classes: classes of the head.
        num_frames: frames of a clip.
        crop_size: side of the training crop, pixels; `patch_size` divides it. Any other size the
            patches divide is accepted in forward: the embeddings are resized.
        dropout_rate: before the last layer. The original has none: set 0.0 for its recipes.
        attention_type: "divided_space_time" (time, then space, in every block), "space_only"
            (frames meet in the mean before the head) or "joint_space_time" (all tokens at once).
        patch_size: side of a patch, pixels.
        embed_dim: channels D; `num_heads` divides it.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP over D.
        drop_path_rate: stochastic depth, from 0 at the first block to this at the last.

    Raises:
        ValueError: a size that does not fit the others.
    """
    check_choice("TIMESFORMER.ATTENTION_TYPE", attention_type, ATTENTION_TYPES)
    check_at_least("DATA.NUM_FRAMES", num_frames, 1, "a clip has frames")
    check_at_least("TIMESFORMER.DEPTH", depth, 1, "blocks")
    check_divides("TIMESFORMER.PATCH_SIZE", patch_size, "DATA.TRAIN_CROP_SIZE", crop_size)
    check_at_least("DATA.TRAIN_CROP_SIZE", crop_size, patch_size, "one patch")
    check_divides("TIMESFORMER.NUM_HEADS", num_heads, "TIMESFORMER.EMBED_DIM", embed_dim)
    if not 0 <= drop_path_rate < 1:
        raise ValueError(
            f"TIMESFORMER.DROP_PATH_RATE is {drop_path_rate}; it must be in [0, 1): a share of rows"
        )
    net = TimeSformer(
        num_classes=num_classes,
        num_frames=num_frames,
        grid_side=crop_size // patch_size,
        dropout_rate=dropout_rate,
        attention_type=attention_type,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        drop_path_rate=drop_path_rate,
    )
    return Backbone(net, blocks=(Block, DividedBlock))


class DropPath(nn.Module):
    """Stochastic depth: in training, drop each row of the first dimension with probability `rate`.

    Rows that stay are divided by 1 - rate. What a row is follows from the attention it comes from:
    a place (over time), a frame (over space), a clip (MLP).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def draw(self, like: Tensor, *sizes: int) -> Tensor | None:
        """Return (*sizes) of 0 (dropped) and 1 / (1 - rate) (stays); None where all stay.

        On the device of `like`, and float32 where that is a shorter type: 1 / (1 - rate) rounded to
        bfloat16 would change the mean.
        """
        if not self.training or self.rate == 0:
            return None
        keep = 1 - self.rate
        dtype = torch.promote_types(like.dtype, torch.float32)
        return like.new_empty(sizes, dtype=dtype).bernoulli_(keep).div_(keep)

    def forward(self, rows: Tensor) -> Tensor:
        """Return `rows` (any, ...) with some set to 0."""
        factors = self.draw(rows, rows.shape[0], *[1] * (rows.ndim - 1))
        return rows if factors is None else (rows * factors).to(rows.dtype)


class Attention(nn.Module):
    """Multi-head self-attention of each row of tokens."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, along: int = 1) -> Tensor:
        """Return what the tokens of each row get from each other.

        Args:
            tokens: (rows, tokens, D).
            along: dimension of the tokens; 0 for (tokens, rows, D), of which nothing is copied.

        Returns:
            A tensor of the shape of `tokens`.
        """
        # chunks, since the gradients of three parts of a last dimension are joined in one copy
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        return self._mix(query, key, value, along)

    def first(self, tokens: Tensor) -> Tensor:
        """Return (rows, 1, D) for (rows, tokens, D): what the first token of each row gets."""
        dim = tokens.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        query = F.linear(tokens[:, :1], weight[:dim], bias[:dim])
        key, value = F.linear(tokens, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        return self._mix(query, key, value, along=1)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, along: int) -> Tensor:
        heads = [
            part.unflatten(2, (self.num_heads, -1)).movedim(along, 2)  # (rows, heads, tokens, d)
            for part in (query, key, value)
        ]
        mixed = F.scaled_dot_product_attention(*heads)
        out: Tensor = self.proj(mixed.movedim(2, along).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (rows, tokens, D) for (rows, tokens, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class _ViTLayers(nn.Module):
    """The layers of a ViT block, which both kinds of block put to use in their own way."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)


class Block(_ViTLayers):
    """A ViT block: attention among all tokens of a row, then the MLP, each with a residual."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (rows, tokens, D) for (rows, tokens, D)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return out


class DividedBlock(_ViTLayers):
    """Attention over time at each place, then over space in each frame, then the MLP.

    The class token and the patches are two tensors, the patches with frames before clips: attention
    over time and over space then see them in the order in which they lie, and nothing joins the two
    but the rows of attention over space.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__(dim, num_heads, mlp_ratio, drop_path)
        self.temporal_norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.temporal_attn = Attention(dim, num_heads)
        self.temporal_fc = nn.Linear(dim, dim)

    def forward(
        self, class_token: Tensor, patches: Tensor, class_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return both tensors after the block.

        Args:
            class_token: (B, D).
            patches: (T, B, N, D).
            class_only: leave out what only the patches would get from attention over space and from
                the MLP: after the last block nobody reads them.
        """
        patches = patches + self._over_time(patches)
        update, stay = self._over_space(class_token, patches, class_only)
        class_update = update[:, :, 0] if stay is None else update[:, :, 0] * stay[:, :, 0]
        class_token = class_token + class_update.mean(dim=0)
        clips = self.drop_path.draw(class_token, class_token.shape[0], 1)  # which stay, (B, 1)
        if not class_only:
            patches = _add(patches, update[:, :, 1:], stay)
            places = None if clips is None else clips.unsqueeze(1)
            patches = _add(patches, self.mlp(self.norm2(patches)), places)
        return _add(class_token, self.mlp(self.norm2(class_token)), clips), patches

    def _over_time(self, patches: Tensor) -> Tensor:
        _, batch, places, _ = patches.shape
        rows = self.temporal_norm1(patches).flatten(1, 2)  # (T, B N, D), without the class token
        update = self.temporal_attn(rows, along=0)
        # paths are dropped before temporal_fc, whose bias therefore stays
        stay = self.drop_path.draw(patches, batch * places, 1)
        update = self.temporal_fc(update if stay is None else update * stay)
        out: Tensor = update.unflatten(1, (batch, places))
        return out

    def _over_space(
        self, class_token: Tensor, patches: Tensor, class_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the update of each frame's tokens (T, B, 1 + N or 1, D), and which frames stay."""
        frames, batch = patches.shape[:2]
        copies = self.norm1(class_token).expand(frames, -1, -1).unsqueeze(2)  # (T, B, 1, D)
        rows = torch.cat((copies, self.norm1(patches)), dim=2).flatten(0, 1)  # (T B, 1 + N, D)
        update = self.attn.first(rows) if class_only else self.attn(rows)
        stay = self.drop_path.draw(patches, batch, frames, 1, 1)
        return update.unflatten(0, (frames, batch)), stay if stay is None else stay.transpose(0, 1)


def _add(tokens: Tensor, update: Tensor, factors: Tensor | None) -> Tensor:
    """Return tokens + factors * update, in one pass; None: + update."""
    return tokens + update if factors is None else torch.addcmul(tokens, update, factors)


class PatchEmbed(nn.Module):
    """Cut frames into patches and project each to D channels."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, frames: Tensor) -> Tensor:
        """Return (frames, D, H / patch, W / patch) for (frames, 3, H, W)."""
        out: Tensor = self.proj(frames)
        return out


class TimeSformer(nn.Module):
    """The network behind `timesformer`, which checks and describes the arguments.

    Args:
        num_classes: classes of the head.
        num_frames: T, the length of the time embedding.
        grid_side: patches along a side of the training crop.
        dropout_rate: before the last layer.
        attention_type: one of ATTENTION_TYPES.
        patch_size: side of a patch, pixels.
        embed_dim: channels D.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP over D.
        drop_path_rate: stochastic depth at the last block.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        grid_side: int,
        dropout_rate: float,
        attention_type: str,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.attention_type, self.patch_size, self.grid_side = attention_type, patch_size, grid_side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid_side**2, embed_dim))
        if attention_type != "space_only":
            self.time_embed = nn.Parameter(torch.zeros(1, num_frames, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        block = DividedBlock if attention_type == "divided_space_time" else Block
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(block(embed_dim, num_heads, mlp_ratio, r) for r in rates)
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout_rate)
        self.head = nn.Linear(embed_dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for embedding in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(embedding, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            if isinstance(block, DividedBlock):
                nn.init.zeros_(block.temporal_fc.weight)  # time joins in during training

    def features(self, clip: Tensor) -> Tensor:
        """Return the normalised class token (B, D) of a normalised clip (B, 3, T, H, W).

        Raises:
            ValueError: patches do not divide H and W.
        """
        batch, _, frames, height, width = clip.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"a crop of {height} x {width} pixels was given; TIMESFORMER.PATCH_SIZE "
                f"{self.patch_size} must divide both sides"
            )
        patches = self._patches(clip)  # (B, T, N, D)
        class_token = self.cls_token + self.pos_embed[:, :1]  # (1, 1, D)
        class_token = class_token.to(patches.dtype)
        if self.attention_type == "divided_space_time":
            return self._divided(class_token, patches)
        if self.attention_type == "space_only":
            patches = patches.flatten(0, 1)  # (B T, N, D)
        else:
            patches = patches.flatten(1, 2)  # (B, T N, D)
        tokens = torch.cat((class_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        class_token = tokens[:, 0]
        if self.attention_type == "space_only":
            class_token = class_token.unflatten(0, (batch, frames)).mean(dim=1)
        out: Tensor = self.norm(class_token)
        return out

    def _divided(self, class_token: Tensor, patches: Tensor) -> Tensor:
        class_token = class_token[0].expand(patches.shape[0], -1)  # (B, D)
        patches = patches.transpose(0, 1).contiguous()  # (T, B, N, D)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            class_token, patches = block(class_token, patches, class_only=number == last)
        out: Tensor = self.norm(class_token)
        return out

    def forward(self, clip: Tensor) -> Tensor:
        """Return logits (B, classes, 1, 1, 1) of a normalised clip (B, 3, T, H, W): one place."""
        logits: Tensor = self.head(self.dropout(self.features(clip)))
        return logits[:, :, None, None, None]

    def _patches(self, clip: Tensor) -> Tensor:
        """Return the patches (B, T, N, D) of a clip, with their positions and times."""
        batch, _, frames, _, _ = clip.shape
        grid = self.patch_embed(clip.transpose(1, 2).flatten(0, 1))  # (B T, D, rows, columns)
        positions: Tensor = self.pos_embed[:, 1:]
        if grid.shape[2:] != (self.grid_side, self.grid_side):
            positions = resize_positions(positions, self.grid_side, (grid.shape[2], grid.shape[3]))
        patches: Tensor = grid.flatten(2).transpose(1, 2) + positions
        patches = patches.unflatten(0, (batch, frames))
        if self.attention_type == "space_only":
            return patches
        times: Tensor = self.time_embed
        if times.shape[1] != frames:
            times = resize_times(times, frames)
        return patches + times.unsqueeze(2)


def resize_positions(positions: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Return (1, H W, D) of (1, side * side, D): rows and columns resized, nearest, to (H, W)."""
    grid = positions.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(grid, size=size, mode="nearest").flatten(2).transpose(1, 2)


def resize_times(times: Tensor, num_frames: int, mode: str = "nearest") -> Tensor:
    """Return (1, num_frames, D) of (1, T, D), for "nearest": out[i] = in[floor(i T / num_frames)].

    Args:
        times: the embedding.
        num_frames: its new length.
        mode: "nearest", as the original, or "linear".
    """
    return F.interpolate(times.transpose(1, 2), size=num_frames, mode=mode).transpose(1, 2)
