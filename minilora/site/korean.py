"""The Korean page: the outline of the summary that minilora began with, heading by heading.

Each heading has its commands, and its claims with the verdicts of the report. Only the words are
here; verdicts and numbers come from the data of the English page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..experiments.experiment import FAILS, REPRODUCES, UNDECIDED
from ..experiments.html import badge

VERDICTS = {REPRODUCES: "재현됨", FAILS: "재현되지 않음", UNDECIDED: "판단할 수 없음"}


@dataclass(frozen=True)
class Heading:
    """A heading of the summary. experiments: their claims stand here, in Korean in CLAIMS."""

    title: str
    text: str
    commands: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()


HEADINGS = (
    Heading(
        "문제",
        "사전 학습된 큰 모델을 작업마다 전체 미세 조정(full fine-tuning)하면, 작업마다 모델 "
        "전체만큼의 메모리와 저장 공간이 필요합니다. 모델이 클수록 이 비용은 감당하기 "
        "어렵습니다.",
        ("minilora account gpt3-175b --method full",
         "minilora account gpt3-175b --r 4 --targets q,v"),
    ),
    Heading(
        "방법: LoRA",
        "W = W0 + ΔW, ΔW = B·A. W0는 고정하고 B와 A만 학습합니다. B는 d×r이고 0에서 시작하며, "
        "A는 r×k이고 정규 분포 N(0, σ²)에서 시작합니다. r은 d와 k보다 훨씬 작습니다. 추론할 "
        "때는 BA를 W0에 더하므로, 적응된 모델의 비용은 원래 모델과 같습니다. 셀프 어텐션의 Wq, "
        "Wk, Wv, Wo에 적용하고 MLP는 고정합니다.",
        ("minilora", "minilora reproduce method"), ("method",),
    ),
    Heading(
        "장점: 적은 파라미터와 메모리",
        "학습하는 파라미터가 GPT-3 175B에서 약 10,000배 줄고, 학습에 필요한 메모리도 "
        "줄어듭니다. 이 숫자는 학습하지 않고 공식과 실제 코드로 셉니다.",
        ("minilora reproduce counts", "minilora reproduce throughput"), ("counts", "throughput"),
    ),
    Heading(
        "장점: 추론 지연이 없음",
        "병합한 모델은 원래 모델과 같은 연산을 합니다. 어댑터 층은 차례로 계산해야 하므로 "
        "지연이 생깁니다.",
        ("minilora reproduce latency",), ("latency",),
    ),
    Heading(
        "장점: 하나의 모델로 여러 작업",
        "작업마다 A와 B만 저장하고, 이것만 바꾸어 작업을 전환합니다.",
        ("minilora reproduce switch",), ("switch",),
    ),
    Heading(
        "결과 1: GLUE",
        "논문은 RoBERTa와 DeBERTa에서 전체 미세 조정, BitFit, 어댑터, LoRA를 비교합니다. "
        "여기서는 작은 인코더와 합성 데이터를 씁니다.",
        ("minilora reproduce glue",), ("glue",),
    ),
    Heading(
        "결과 2: 자연어 생성",
        "논문은 GPT-2 M과 L로 E2E를 학습하고 BLEU, NIST, METEOR, ROUGE-L, CIDEr로 평가합니다.",
        ("minilora reproduce nlg",), ("nlg",),
    ),
    Heading(
        "결과 3: GPT-3 175B",
        "논문은 WikiSQL, MNLI, SAMSum을 씁니다. 여기서는 이 셋을 본뜬 작은 작업을 씁니다.",
        ("minilora reproduce gpt3", "minilora reproduce lowdata"), ("gpt3", "lowdata"),
    ),
    Heading(
        "결과 4: 파라미터 수와 성능",
        "각 방법의 파라미터를 늘리면 성능이 어떻게 변하는지 봅니다.",
        ("minilora reproduce params",), ("params",),
    ),
    Heading(
        "결과 5: 어떤 행렬에 적용하는가",
        "요약문은 Query와 Key가 가장 좋다고 하지만, 논문의 표 5는 그렇게 말하지 않습니다. "
        "그래서 직접 잽니다.",
        ("minilora reproduce matrices",), ("matrices",),
    ),
    Heading(
        "결과 6: 최적의 rank",
        "요약문은 r = 4가 가장 좋다고 하지만, 논문의 표 6에서 GPT-3의 차이는 오차보다 "
        "작습니다. 그래서 직접 잽니다.",
        ("minilora reproduce rank",), ("rank",),
    ),
    Heading(
        "결과 7: ΔW의 rank와 부분 공간",
        "부분 공간 유사도 φ와 증폭 계수를 무작위 행렬과 나란히 잽니다.",
        ("minilora reproduce subspace", "minilora reproduce amplification",
         "minilora tutorials run 10"), ("subspace", "amplification"),
    ),
)
CLAIMS = {  # experiment -> its claims, in their order
    "method": (
        "학습은 원래 모델에서 시작한다: ΔW = BA가 0이다.",
        "W0는 고정되고 A와 B만 학습된다.",
        "W0 + BA로 병합하면 W0와 BA를 나란히 계산한 것과 같다.",
    ),
    "counts": (
        "GPT-3에서 LoRA는 전체 미세 조정보다 10,000배 적은 파라미터를 학습한다.",
        "Adam으로 학습할 때 메모리가 3배 적게 든다.",
        "논문에 인쇄된 파라미터와 바이트 수는 공식에서 나온다.",
    ),
    "throughput": (
        "대부분의 파라미터에 기울기가 필요 없으므로 한 단계의 연산과 메모리가 줄어든다.",
        "한 학습 단계가 전체 미세 조정보다 빠르다.",
        "시간이 25 % 줄어든다.",
    ),
    "latency": (
        "병합한 LoRA는 지연을 더하지 않는다: 원래 모델과 같은 연산을 한다.",
        "어댑터 층은 차례로 계산해야 하므로 깊이가 늘어난다.",
        "추가 지연은 배치가 작고 문장이 짧을 때 가장 크다.",
        "블록마다 어댑터가 둘인 Adapter-H는 하나인 Adapter-L보다 느리다.",
    ),
    "switch": (
        "모델 하나와 작은 어댑터 여럿은 모델 여럿보다 저장 공간이 훨씬 적다.",
        "A와 B만 바꾸면 더 적은 비용으로 작업을 전환한다.",
        "BA를 빼고 B'A'를 더하면 W0가 복구되고 작업이 바뀐다.",
    ),
    "glue": (
        "LoRA는 훨씬 적은 파라미터로 전체 미세 조정과 거의 같다.",
        "LoRA는 BitFit과 어댑터보다 좋다.",
    ),
    "nlg": (
        "LoRA는 파라미터 수가 같거나 더 많은 어댑터와 프리픽스보다 좋다.",
        "LoRA는 적어도 전체 미세 조정만큼 좋다.",
    ),
    "gpt3": (
        "LoRA는 세 작업 모두에서 전체 미세 조정과 같거나 더 좋다.",
        "LoRA는 BitFit, PreEmbed, PreLayer, Adapter-H보다 좋다.",
    ),
    "lowdata": (
        "예제가 적을 때 LoRA는 PreEmbed와 PreLayer보다 좋다.",
        "예제가 적을 때 LoRA는 적어도 전체 미세 조정만큼 좋다.",
        "예제가 늘면 프리픽스에 대한 LoRA의 우위가 줄어든다.",
    ),
    "params": (
        "LoRA는 파라미터를 늘려도 나빠지지 않으며, 작은 방법 가운데 최고다.",
        "모든 방법이 파라미터로 좋아지지는 않는다: PreEmbed와 PreLayer는 토큰이 많으면 나빠진다.",
    ),
    "matrices": (
        "q와 v를 함께 쓰면 q와 k, 또는 q나 k 하나보다 좋다.",
        "작은 r로 네 행렬 모두에 적용하면 큰 r로 일부에 적용하는 것보다 좋다.",
        "Query와 Key가 가장 좋은 쌍이다. (요약문의 주장이며, 논문은 다르게 말한다.)",
    ),
    "rank": (
        "아주 작은 rank로 충분하다.",
        "가장 좋은 rank는 r = 4이다. (요약문의 주장이며, 논문은 그렇게 말하지 않는다.)",
        "원래 모델에 새로운 것은 더 큰 rank가 필요하다.",
    ),
    "subspace": (
        "r = 8의 첫째 방향은 r = 64에도 있고, 나머지는 그렇지 않다.",
        "논문처럼 A만 재어도 그렇다.",
        "두 시드는 첫 몇 방향을 공유한다.",
        "두 무작위 행렬은 공유하는 방향이 없다.",
    ),
    "amplification": (
        "ΔW는 무작위 행렬보다 W와 더 강하게 관련된다.",
        "ΔW는 W의 주된 방향을 반복하지 않고, W가 강조하지 않는 방향을 증폭한다.",
        "증폭 계수가 크다.",
        "계수는 r이 커지면 작아진다.",
    ),
}


def headings(pages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the headings with their claims: what it says, its badge, place and numbers.

    pages: the facts of the experiments, by name. An experiment that is not there is left out.
    """
    return [
        {
            "title": one.title, "text": one.text, "commands": one.commands,
            "claims": [
                {"says": says, "badge": badge(claim["verdict"], VERDICTS[claim["verdict"]]),
                 "place": f"{name}-{n}", "because": claim["because"]}
                for name in one.experiments if name in pages
                for n, (says, claim) in enumerate(
                    zip(CLAIMS[name], pages[name]["claims"], strict=True), 1)
            ],
        }
        for one in HEADINGS
    ]
