import torch

from sparkles.models.qformer import QFormer


def make(**options) -> QFormer:
    sizes = {
        "vision_hidden_size": 24,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_query_tokens": 5,
    }
    return QFormer(**(sizes | options)).eval()


def test_any_number_of_image_tokens_becomes_the_same_number_of_vectors() -> None:
    qformer = make()
    assert qformer(torch.randn(3, 7, 24)).shape == qformer(torch.randn(3, 50, 24)).shape == (3, 5, 16)


def test_images_do_not_see_each_other() -> None:
    qformer, tokens = make(), torch.randn(2, 7, 24)
    torch.testing.assert_close(qformer(tokens)[1], qformer(tokens[1:])[0])
    assert not torch.allclose(qformer(tokens)[0], qformer(tokens)[1])


def test_cross_attention_frequency_counts_the_layers_that_look() -> None:
    def looking(qformer: QFormer) -> list[bool]:
        return [layer.has_cross_attention for layer in qformer.transformer.encoder.layer]

    assert looking(make()) == [True, False, True, False]
    assert looking(make(cross_attention_frequency=1)) == [True] * 4


def test_image_tokens_of_another_dtype_are_read() -> None:
    qformer = make(dtype="float16")
    assert {weight.dtype for weight in qformer.parameters()} == {torch.float16}
    assert qformer(torch.randn(2, 7, 24)).dtype == torch.float16
    assert make()(torch.randn(2, 7, 24).bfloat16()).dtype == torch.float32
